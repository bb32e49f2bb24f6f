"""A grid's validations, one curve per loss: scores over time or steps, and PSNR against LPIPS."""

import argparse
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import configs

from .. import collect
from .drawing import Drawn, Plan

RISING = "PSNR-Y"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the grid, its losses and the metric."""
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="a grid's folder, or its --results")
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="only these (default: all)")
    parser.add_argument("--metric", default="LPIPS-squeeze", help="metric beside PSNR-Y (default: LPIPS-squeeze)")


def read_curves(folder: Path, losses: list[str] | None, metric: str) -> dict[tuple[str, str], list[dict]]:
    """Read, by block (network and scale) and loss, rows of step, seconds, PSNR-Y, metric and n, the seeds.

    Scores are means over seeds. Seconds are steps times a step's mean time, NaN if not measured. Raises ValueError.
    """
    results = collect.read(folder)
    configs.expect(results.progress, "results", folder, "a grid's folder with progress.csv; collect it anew")
    known = list(dict.fromkeys(row["loss"] for row in results.progress))
    for loss in losses or []:
        configs.choose(loss, known, "loss of the grid")
    configs.choose(metric, [name for name in results.progress[0] if name not in (*collect.KEYS, "step")], "metric")
    timed: dict[tuple[str, str], list[float]] = {}
    for row in results.trainings:
        block = f"{row['network']} x{row['scale']}"
        timed.setdefault((block, row["loss"]), []).append(float(row["seconds_per_step"] or math.nan))
    curves: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for row in results.progress:
        if losses is None or row["loss"] in losses:
            points = curves.setdefault((f"{row['network']} x{row['scale']}", row["loss"]), {})
            points.setdefault(int(row["step"]), []).append((float(row[RISING] or "nan"), float(row[metric] or "nan")))
    return {
        (block, loss): [
            {
                "step": step,
                "seconds": round(step * float(np.mean(timed[block, loss])), 1),
                RISING: round(float(np.mean([psnr for psnr, _ in of])), 4),
                metric: round(float(np.mean([other for _, other in of])), 5),
                "n": len(of),
            }
            for step, of in sorted(points.items())
        ]
        for (block, loss), points in curves.items()
    }


def draw(args: argparse.Namespace) -> Drawn:
    """Draw per network and scale: PSNR and the metric over seconds (else steps), and against each other."""
    curves = read_curves(args.results, args.losses, args.metric)
    blocks = list(dict.fromkeys(block for block, _ in curves))
    figure = Figure((12, 3.9 * len(blocks)), layout="constrained")
    for block, axes in zip(blocks, figure.subplots(len(blocks), 3, squeeze=False)):
        own = {loss: rows for (of, loss), rows in curves.items() if of == block}
        by = "seconds" if all(math.isfinite(rows[0]["seconds"]) for rows in own.values()) else "step"
        for number, (loss, rows) in enumerate(own.items()):
            style = {"color": f"C{number}", "label": collect.label_of(loss), "marker": ".", "linewidth": 1.4}
            x, psnr, other = ([row[name] for row in rows] for name in (by, RISING, args.metric))
            axes[0].plot(x, psnr, **style)
            axes[1].plot(x, other, **style)
            axes[2].plot(other, psnr, **style)
            axes[2].plot(other[-1:], psnr[-1:], color=f"C{number}", marker="*", markersize=13)
        label = "seconds of training" if by == "seconds" else "steps"
        axes[0].set(xlabel=label, ylabel="PSNR-Y, dB, validation", title=block)
        axes[1].set(xlabel=label, ylabel=f"{args.metric}, less is better")
        axes[2].set(xlabel=args.metric, ylabel="PSNR-Y, dB", title="star: the end; better: up and left")
        ends = [rows[-1] for rows in own.values()]
        low, high = min(row[RISING] for row in ends), max(row[RISING] for row in ends)
        least, most = min(row[args.metric] for row in ends), max(row[args.metric] for row in ends)
        # The first validations are far off: show where the curves end.
        span, width = max(high - low, 0.1), max(most - least, 0.01)
        for ax in (axes[0], axes[2]):
            ax.set_ylim(low - 3 * span, high + 0.5 * span)
        best = min(row[args.metric] for rows in own.values() for row in rows)
        axes[1].set_ylim(best - 0.3 * width, most + 3 * width)
        axes[2].set_xlim(best - 0.3 * width, most + 3 * width)
        for ax in axes:
            ax.grid(alpha=0.3)
    labels = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels())))
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=min(4, len(labels)), fontsize=9)
    rows = [{"block": block, "loss": loss} | row for (block, loss), of in curves.items() for row in of]
    return Drawn(figure, rows)


PROGRESS = Plan("A grid's validations: scores by time, and PSNR against LPIPS.", add_flags, draw)
