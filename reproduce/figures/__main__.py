"""Draw a figure: a PNG, and its numbers as CSV.

    python -m reproduce.figures fig2                          TLW: FixedSum's curves (Fig. 2a and 2b)
    python -m reproduce.figures fig4 --modelpath RUN          TLW: a weight map, layer by layer, and its histograms
    python -m reproduce.figures fig5 --modelpath RUN          TLW: the weights over the epochs of a run with --watch
    python -m reproduce.figures fig6 --modelpath RUN          TLW: crops by each loss, where two of them differ most
    python -m reproduce.figures hero --modelpath RUN          README's first picture
    python -m reproduce.figures pspl-attention                PSPL: the weight of a pixel by its SSIM and the step
    python -m reproduce.figures dp-features --image FILE      DP: feature maps of two extractors (its Fig. 3)
    python -m reproduce.figures progress --results DIR        a grid's validations: scores by time, PSNR against LPIPS

Writes NAME.png and NAME.csv to --out (default: figures/). Add --help after a name for its flags.
"""

import argparse
import sys
from pathlib import Path

import configs
from runs.atomic import write_or_report
from runs.output import escape_unencodable_output
from training.device import setup_device

from ..collect import csv_text
from . import crops, curves, features, hero, progress, weights

PROGRAM = "reproduce.figures"
FIGURES = {
    "fig2": curves.FIXED_SUM,
    "fig4": weights.LAYERS,
    "fig5": weights.EPOCHS,
    "fig6": crops.RIVALS,
    "hero": hero.HERO,
    "pspl-attention": curves.ATTENTION,
    "dp-features": features.FEATURES,
    "progress": progress.PROGRESS,
}


def parse(argv: list[str]) -> tuple[str, argparse.Namespace]:
    """Parse the figure's name and its flags. Exits with code 2 if one is wrong."""
    with configs.one_line_errors(PROGRAM):
        name = configs.choose(argv[0], FIGURES, "figure")
    parser = configs.OneLineParser(prog=f"{PROGRAM} {name}", description=FIGURES[name].about)
    FIGURES[name].add_flags(parser)
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="(default: figures)")
    return name, parser.parse_args(argv[1:])


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return
    name, args = parse(argv)
    with configs.one_line_errors(f"{PROGRAM} {name}"):
        setup_device("cpu")
        drawn = FIGURES[name].draw(args)
        path = args.out / f"{name}.png"
    contents = {path: drawn.png(), path.with_suffix(".csv"): csv_text(drawn.rows).encode()}
    if not all([write_or_report(PROGRAM, file, content) for file, content in contents.items()]):
        raise SystemExit(1)
    print(f"written: {path}, {path.with_suffix('.csv')}")


if __name__ == "__main__":
    escape_unencodable_output()
    main()
