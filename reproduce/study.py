"""Make the study's tables in docs/results.md from reproduce/results.

python -m reproduce.study            writes them into the page again

Each table is below a comment with its name, such as `<!-- table: steps -->`.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import configs
from runs.atomic import atomic_write

from . import collect, report
from .collect import Results
from .report import markdown

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "reproduce/results", ROOT / "docs/results.md"
EDSR, TLW = "EDSR[blocks=8,channels=48]", "L1+TLW"
UNIFORM, SHUFFLED, INVERTED, NORMALISED, ONE, SMALL, HALF = (
    f"{TLW}[{settings}]"
    for settings in (
        "weights=uniform",
        "weights=shuffled",
        "weights=inverted",
        "wc=normalised",
        "wc=one",
        "weighting_channels=16,samples=1",
        "weighting_scale=2,e_every=4,reuse_mu=true",
    )
)


def joined(folders: list[str]) -> Results:
    """Join several grids. Raises ValueError if they share a training or their test images differ."""
    parts = [collect.read(RESULTS / folder) for folder in folders]
    if any(part.names != parts[0].names for part in parts):
        raise ValueError(f"{' '.join(folders)}: expected the same test images in all of them")
    trained = [key for part in parts for key in part.scores if key.loss != "bicubic"]
    if len(set(trained)) < len(trained):
        raise ValueError(f"{' '.join(folders)}: expected each network, scale, loss and seed in one of them")
    scores = {key: of for part in parts for key, of in part.scores.items()}
    return parts[0]._replace(scores=scores, trainings=[row for part in parts for row in part.trainings])


def compared(folders: str, pairs: Iterable[tuple[str, str]]) -> tuple[Results, list[dict]]:
    results = joined(folders.split())
    return results, report.comparison_rows(results, pairs, "last")


def gains(folders: str, *pairs: tuple[str, str]) -> str:
    """Each pair's gain in each metric with its 95 % interval, by network if there are several."""
    return report.brief_table(*compared(folders, pairs))


def rates() -> str:
    """PSNR-Y on the held-out images at each learning rate; the chosen one in bold."""
    found: dict[tuple, dict[float, dict]] = {}
    for row in collect.read_csv(RESULTS / "rates.csv"):
        key = f"{row['network']} ×{row['scale']}", f"`{row['loss']}`"
        found.setdefault(key, {})[float(row["learning_rate"])] = row
    columns = sorted({rate for of in found.values() for rate in of})
    lines = []
    for key, of in found.items():
        cells = {rate: f"{float(row['PSNR-Y']):.3f}" for rate, row in of.items()}
        sound = [rate for rate, row in of.items() if row["diverged"] == "0"]
        best = max(sound, key=lambda rate: float(of[rate]["PSNR-Y"]))
        cells |= {rate: f"{cells[rate]}, diverged" for rate in of if rate not in sound} | {best: f"**{cells[best]}**"}
        lines.append([*key, *(cells.get(rate, "") for rate in columns)])
    return markdown(lines, ["network", "loss", *(f"{rate:g}" for rate in columns)])


def costs(folder: str, *losses: str) -> str:
    """Steps of each loss, and seconds of a step as measured before the grid."""
    found = {
        row["loss"]: (int(row["steps"]), float(row["seconds_per_step"]))
        for row in collect.read(RESULTS / folder).trainings
    }
    plain = found["L1"][1]
    lines = []
    for loss in losses:
        steps, seconds = found[loss]
        lines.append([f"`{loss}`", f"{steps:,}", f"{seconds:.3g} ({seconds / plain:.3g})"])
    return markdown(lines, ["loss", "steps", "seconds of a step (× L1's)"])


def cheap() -> str:
    """The cost of a step of each cheaper form of TLW, and how much of TLW's gain over L1 it keeps."""
    metrics, ratios = (
        ("PSNR-Y", "LPIPS-squeeze"),
        {row["loss"]: row["ratio"] for row in collect.read_csv(RESULTS / "step_ratios.csv")},
    )
    _, rows = compared("steps", [(loss, "L1") for loss in ratios])
    found = {(row["loss"], row["metric"]): row for row in rows if row["network"] == EDSR and row["scale"] == 4}
    lines = []
    for loss, ratio in ratios.items():
        line = [f"`{loss}`", ratio]
        for metric in metrics:
            row, full = found[loss, metric], found[TLW, metric]
            line += [report.shown_gain(row), f"{100 * row['gain'] / full['gain']:.0f} %"]
        lines.append(line)
    return markdown(lines, ["loss", "step (× L1)", *(x for m in metrics for x in (f"{m} over L1", "kept"))])


def picture() -> str:
    """The scores of README's picture."""
    metrics = "PSNR-Y", "SSIM-Y", "LPIPS-alex", "LPIPS-squeeze"
    lines = [
        [row["loss"], *(f"{float(row[m]):.4f}" for m in metrics)] for row in collect.read_csv(RESULTS / "picture.csv")
    ]
    return markdown(lines, ["loss", *metrics])


TABLES: dict[str, Callable[[], str]] = {
    "rates": rates,
    "steps": lambda: gains(
        "steps",
        (TLW, "L1"),
        *((loss, TLW) for loss in (UNIFORM, SHUFFLED, INVERTED, NORMALISED, ONE)),
        *((loss, "L1") for loss in (UNIFORM, SHUFFLED, INVERTED, NORMALISED, ONE)),
        ("MSE", "L1"),
        ("MSE+TLW", "MSE"),
        ("MSE+TLW", "L1"),
        ("L1+UDL", "L1"),
        ("L1+PSPL", "L1"),
    ),
    "networks": lambda: gains("steps rcan vdsr x2", (TLW, "L1"), (TLW, "MSE")),
    "time": lambda: gains(
        "time",
        (TLW, "L1"),
        (SMALL, "L1"),
        (HALF, "L1"),
        (UNIFORM, "L1"),
        ("MSE", "L1"),
        ("MSE-4e-4", "L1"),
        (SMALL, "MSE-4e-4"),
    ),
    "time costs": lambda: costs("time", "L1", TLW, SMALL, HALF, UNIFORM),
    "converged": lambda: gains("time", ("L1+TLW-6000", "L1"), ("L1+TLW-6000", "MSE-4e-4")),
    "finish": lambda: gains(
        "finish",
        (TLW, "L1"),
        (TLW, "L1-2700"),
        (TLW, "MSE-2700"),
        ("MSE+TLW", "L1-2700"),
        ("MSE+TLW", "MSE-2700"),
        ("cheap-1200", "L1-2700"),
        ("cheap-1200", "MSE-2700"),
        ("L1-2700", "L1"),
        ("MSE-2700", "L1-2700"),
    ),
    "cheap": cheap,
    "picture": picture,
}


def filled(page: str) -> str:
    """The page with every table made again. Raises ValueError if a comment names no table."""

    def table(match: re.Match) -> str:
        name = configs.choose(match[1], TABLES, "table")
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n"

    return re.sub(r"<!-- table: (.*?) -->\n(?:\|.*\n)*", table, page)


def main(argv: list[str] | None = None) -> None:
    configs.OneLineParser(prog="reproduce.study", description="Write the tables of docs/results.md.").parse_args(argv)
    with configs.one_line_errors("reproduce.study"):
        atomic_write(PAGE, filled(PAGE.read_text()).encode())
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
