"""Choose the learning rate of each loss: train at several rates, and compare validation scores.

    python -m reproduce.sweep --models "EDSR[blocks=8,channels=32]" --losses L1 L1+TLW --rates 1e-4 2e-4 4e-4 8e-4 \
        --seeds 2 --trainpath T91 BSDS200 --steps 2000 --patch 96 --batchsize 8 --out checkpoints/sweep

Warm-up and clipping are on unless --warmup and --clip-grad are given: without them divergence is a matter of luck. A
rate's score is the mean over seeds at the end of training; a rate at which any seed diverged is not chosen. If the best
rate is at the edge, the next one beyond it is tried too. A training has diverged if
- its loss or validation was not finite at the end (train.py gave up);
- a loss in its log was above 100 and 100 times the first one (images lie in [-1, 1]);
- it ended more than 1 dB (PSNR-Y) below its own best validation, or
- more than 3 dB below bicubic, with no lower loss in the last quarter than in the first.
It writes rates.json, which reproduce.grid --rates reads, sweep.csv and sweep.png. Exit codes: as reproduce.grid's.
"""

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

import configs
from runs.atomic import atomic_write
from runs.evaluations import read_evaluations

from . import collect, grid
from .cells import DIVERGED, Cell, read_log
from .cluster import Jobs
from .collect import RISING
from .report import mean_and_deviation, without_repeats
from .running import exit_if_failed, run_all

PROGRAM = "reproduce.sweep"
RATES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
EXPLODED, FALLEN, BELOW_BICUBIC = 100.0, 1.0, 3.0  # a loss, and a multiple of the first one; dB; dB


class Point(NamedTuple):
    """The result of one training."""

    rate: float
    diverged: bool
    scores: dict[str, float]  # of the last validation; empty if there is none


def has_diverged(log: list[dict], bicubic: float | None) -> bool:
    """True if a training's log has one of the signs above.

    bicubic: PSNR-Y of bicubic on the validation images, if known.
    """
    losses = [value for entry in log if "loss" in entry for value in entry["loss"].values()]
    psnrs = [entry["PSNR-Y"] for entry in log if "validation" in entry]
    if not psnrs or None in psnrs[-1:] + losses[-1:]:
        return True
    finite = [loss for loss in losses if loss is not None]
    exploded = max(map(abs, finite)) > EXPLODED * max(1, abs(finite[0]))
    fallen = psnrs[-1] < max(psnr for psnr in psnrs if psnr is not None) - FALLEN
    poor = bicubic is not None and psnrs[-1] < bicubic - BELOW_BICUBIC
    quarter = -(-len(finite) // 4)
    learned = np.mean(finite[-quarter:]) < np.mean(finite[:quarter])
    return exploded or fallen or (poor and not learned)


def read_point(cell: Cell) -> Point | None:
    """Read the result of a cell; None if it is not finished."""
    c, log = cell.config, read_log(cell.folder)
    if not cell.finished():
        return None
    gave_up = (cell.folder / DIVERGED).exists()
    scores = next((entry for entry in reversed(log) if "validation" in entry), {})
    scores = {name: value for name, value in scores.items() if name not in ("step", "epoch", "validation")}
    rows = [row for entry in read_evaluations(cell.folder / "val.json") for row in entry["rows"]]
    bicubic = next((row["PSNR-Y"] for row in rows if row["loss"] == "bicubic"), None)
    return Point(c.learning_rate, gave_up or has_diverged(log, bicubic), scores)


def by_rate(points: list[Point], metric: str) -> dict[float, tuple[list[float], int, int]]:
    """{rate: (scores of the trainings that did not diverge, number that did, number of all)}."""
    found = {}
    for rate in sorted({point.rate for point in points}):
        of = [point for point in points if point.rate == rate]
        good = [point.scores[metric] for point in of if not point.diverged]
        found[rate] = good, len(of) - len(good), len(of)
    return found


def choose(points: list[Point], metric: str) -> tuple[float | None, str]:
    """The best rate and its edge, "low", "high" or "" for none; (None, "low") if every rate diverged."""
    found = by_rate(points, metric)
    means = {rate: np.mean(scores) for rate, (scores, diverged, _) in found.items() if not diverged}
    if not means:
        return None, "low"
    best = (max if metric in RISING else min)(means, key=means.get)
    return best, "low" if best == min(found) else "high" if best == max(found) else ""


def beyond(points: list[Point], metric: str, bounds: list[float]) -> float | None:
    """The rate to try next, beyond the best rate's edge; None if it is at none, or out of bounds."""
    _, edge = choose(points, metric)
    rates = sorted({point.rate for point in points})
    ratio = rates[1] / rates[0] if len(rates) > 1 else 2.0
    rate = float(f"{rates[0] / ratio if edge == 'low' else rates[-1] * ratio:.3g}")
    return rate if edge and bounds[0] <= rate <= bounds[1] else None


def parse(argv: list[str] | None):
    parser = configs.OneLineParser(prog=PROGRAM, description="The learning rate of each loss, on validation images.")
    grid.add_cell_flags(parser, grid.Preset(PROGRAM), 2, "")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=list(RATES),
        metavar="RATE",
        help=f"(default: {' '.join(f'{rate:g}' for rate in RATES)})",
    )
    parser.add_argument(
        "--bounds",
        nargs=2,
        type=float,
        default=[1e-6, 1e-1],
        metavar=("LOW", "HIGH"),
        help="try no rates outside these (default: 1e-6 0.1)",
    )
    parser.add_argument(
        "--by", metavar="METRIC", help="metric that chooses, such as PSNR-Y (default: the first perceptual one)"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing; only show the finished trainings")
    grid.add_settings(parser, grid.OURS | {"learning_rate"})
    return parser.parse_args(argv)


def make_cells(args, wanted: dict[tuple[str, str], list[float]] | None = None) -> list[Cell]:
    """Make the trainings at --rates, or at `wanted` by block and loss. Raises as grid.base_cells does."""
    common = grid.common_config(args)
    given = {"warmup": common.warmup, "clip_grad": common.clip_grad}
    steady = {"warmup": min(500, max(1, (common.steps or 2000) // 20)), "clip_grad": 1.0}
    more = [
        word
        for name, value in steady.items()
        if not given[name] and name not in vars(args)
        for word in (configs.flag_of(name), str(value))
    ]
    configs.expect(
        len(set(args.rates)) == len(args.rates) and min(args.rates) > 0,
        "rates",
        " ".join(map(str, args.rates)),
        "rates above 0, each once",
    )
    cells = []
    for cell in grid.base_cells(args, more):
        for rate in sorted(args.rates) if wanted is None else wanted.get((cell.block, cell.loss), []):
            own = ["--learning-rate", f"{rate:.3g}"]
            cells.append(grid.with_folder(cell, args, f"{cell.loss} at {rate:.3g}", own))
    return cells


def read_points(cells: list[Cell]) -> dict[tuple[str, str], list[Point]]:
    """Read the results of the finished cells, by block and loss."""
    found: dict[tuple[str, str], list[Point]] = {}
    for cell in cells:
        if point := read_point(cell):
            found.setdefault((cell.block, cell.loss), []).append(point)
    return found


def metric_that_chooses(points: dict[tuple[str, str], list[Point]], args) -> str:
    """--by, or the first metric after PSNR-Y and SSIM-Y. Raises ValueError if no training was validated."""
    names = next((list(point.scores) for of in points.values() for point in of if point.scores), None)
    if names is None:
        raise ValueError("no training came to a validation: every rate diverged, or none is finished; lower --rates")
    return configs.choose(args.by, names, "metric") if args.by else (names[2:] or names)[0]


def table(points: dict[tuple[str, str], list[Point]], metric: str) -> str:
    """A table with a line per network, loss and rate: score, divergences, and the choice."""
    lines = []
    for (block, loss), of in points.items():
        best, edge = choose(of, metric)
        for rate, (scores, diverged, trained) in by_rate(of, metric).items():
            mean, deviation = mean_and_deviation(scores) if scores else (None, None)
            chosen = f"chosen, at the {edge} edge" if edge else "chosen"
            shown = "" if mean is None else f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
            lines.append([block, loss, f"{rate:g}", shown, f"{diverged} of {trained}", chosen if rate == best else ""])
    arrow = "↑" if metric in RISING else "↓"
    headers = ["network", "loss", "rate", f"{metric} {arrow}", "diverged", ""]
    return tabulate(
        without_repeats(lines, 2), headers, disable_numparse=True, colalign=("left",) * 2 + ("right",) * 3 + ("left",)
    )


def draw(points: dict[tuple[str, str], list[Point]], metric: str, path: Path) -> None:
    """Draw each loss's curve, with a panel per network and scale; crosses at the top mark divergence."""
    blocks = list(dict.fromkeys(block for block, _ in points))
    figure = Figure(figsize=(5 * len(blocks), 4), layout="constrained")
    for axes, block in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks):
        for number, ((_, loss), of) in enumerate(item for item in points.items() if item[0][0] == block):
            found, colour = by_rate(of, metric), f"C{number % 10}"
            good = {rate: scores for rate, (scores, *_) in found.items() if scores}
            means = [np.mean(scores) for scores in good.values()]
            axes.plot(list(good), means, "-", color=colour, label=loss)
            axes.plot(
                [r for r in good for _ in good[r]], [x for r in good for x in good[r]], ".", color=colour, alpha=0.5
            )
            best, _ = choose(of, metric)
            if best is not None:
                axes.plot([best], [np.mean(good[best])], "o", color=colour, markerfacecolor="none", markersize=10)
            bad = [rate for rate, (_, diverged, _) in found.items() if diverged]
            axes.plot(
                bad,
                [1 - 0.03 * number] * len(bad),
                "x",
                color=colour,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
        axes.set(xscale="log", xlabel="learning rate", ylabel=metric, title=block)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    atomic_write(path, buffer.getvalue())


def conclude(cells: list[Cell], args) -> None:
    """Print the table, write the files, print the next command. Raises ValueError if nothing is finished."""
    points, out = read_points(cells), grid.folder_of(args)
    metric = metric_that_chooses(points, args)
    print("\n" + table(points, metric))
    rates, rows, scales = [], [], {cell.block: (cell.network, cell.config.scale) for cell in cells}
    for (block, loss), of in points.items():
        network, scale = scales[block]
        best, edge = choose(of, metric)
        if best is None:
            print(f"{block} {loss}: every rate diverged, down to {min(point.rate for point in of):g}; lower --bounds")
        else:
            rates.append({"network": network, "scale": scale, "loss": loss, "learning_rate": best, "edge": edge})
        rows += [
            {
                "network": network,
                "scale": scale,
                "loss": loss,
                "learning_rate": point.rate,
                "diverged": int(point.diverged),
                **point.scores,
            }
            for point in of
        ]
    atomic_write(out / "rates.json", (json.dumps(rates, indent=1) + "\n").encode())
    collect.write_csv(out / "sweep.csv", rows)
    draw(points, metric, out / "sweep.png")
    print(
        f"\nA rate's score is the mean of its seeds on the validation images at the end ({metric}).\n"
        f"A rate at which a seed diverged is not chosen.\nwritten: {out / 'rates.json'}, sweep.csv, sweep.png"
    )
    c = cells[0].config
    print(
        f"next: python -m reproduce.grid --rates {out / 'rates.json'} --warmup {c.warmup} --clip-grad {c.clip_grad} "
        "--folder DIR ...    (the same networks, losses and settings)"
    )


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    cluster, failed = None, {}
    with configs.one_line_errors(PROGRAM):
        cells = make_cells(args)
        if not args.collect:
            grid.check(cells, args)
            grid.prepare(args, cells)
            if args.executor != "none":
                cluster = Jobs(args.executor, grid.folder_of(args) / "submitit", args.slurm)
    while True:
        failed |= {} if args.collect else run_all(PROGRAM, cells, args.jobs, cluster)
        with configs.one_line_errors(PROGRAM):
            points = read_points(cells)
            metric = metric_that_chooses(points, args)
            wanted = {name: beyond(of, metric, args.bounds) for name, of in points.items()}
            more = make_cells(args, {name: [rate] for name, rate in wanted.items() if rate is not None})
        known = {cell.folder for cell in cells}
        more = [cell for cell in more if cell.folder not in known and (not args.collect or read_point(cell))]
        if failed or not more:
            break
        print(
            "\nbest at the edge, going on: " + ", ".join(dict.fromkeys(f"{cell.block} {cell.label}" for cell in more))
        )
        cells += more
    with configs.one_line_errors(PROGRAM):
        conclude(cells, args)
    exit_if_failed(PROGRAM, failed, len(cells))


if __name__ == "__main__":
    main()
