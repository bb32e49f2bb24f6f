"""Show runs on one HTML page: commands to repeat them, curves, tables, images, weight maps, notes.

python report.py checkpoints/RUN                  writes checkpoints/RUN/report.html; without RUN: of the newest run
python report.py checkpoints/A checkpoints/B      both on one page, ./report.html
"""

import argparse
import os
from pathlib import Path

import configs
from runs.output import escape_unencodable_output


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 if it is wrong."""
    about, examples = __doc__.split("\n\n", 1)
    parser = configs.OneLineParser(prog="report.py", description=about, epilog=f"examples:\n{examples}")
    path = configs.typed_path
    parser.add_argument("runs", nargs="*", type=path, metavar="RUN", help="folders of runs (default: the newest)")
    parser.add_argument(
        "--out",
        "--output",
        type=path,
        metavar="FILE",
        help="the page to write (default: RUN/report.html; for several runs: ./report.html)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=3,
        metavar="N",
        help="number of validation images to upscale for it, if train.py --watch kept none (default: %(default)s)",
    )
    parser.add_argument("--device", help="device for --images: cpu, cuda, cuda:1 (default: cuda if there is a GPU)")
    return parser.parse_args(argv)


if __name__ == "__main__":  # importing torch takes seconds: answer --help and typing errors before it
    escape_unencodable_output()
    parse(None)

from runs.folder import newest_run_dir
from training import stop_signals
from training.device import setup_device
from training.page import write_report


def check_out(path: Path) -> Path:
    """Return path if a page can be written there. Raises ValueError."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    fits = not path.is_dir() and existing.is_dir() and os.access(existing, os.W_OK)
    configs.expect(fits, "out", path, "a file for HTML, such as report.html, in a folder that can be written to")
    return path


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("report.py"):
        configs.expect(0 <= args.images <= 16, "images", args.images, "a number of images, from 0 to 16")
        configs.expect(args.out != "", "out", '""', "a file for HTML, such as report.html")
        runs = [Path(run) for run in dict.fromkeys(args.runs)] or [newest_run_dir()]
        for run in runs:
            if not (run / "config.yaml").is_file():
                raise ValueError(
                    f"{run}: no config.yaml there; expected a run's folder, such as checkpoints/EDSR_x4_001"
                )
        out = check_out(
            Path(args.out) if args.out else Path("report.html") if len(runs) > 1 else runs[0] / "report.html"
        )
        write_report(runs, out, images=args.images, device=setup_device(args.device))
    print(f"report: {out}")


if __name__ == "__main__":
    with stop_signals.exit_on_signal("no report was written"):
        main()
