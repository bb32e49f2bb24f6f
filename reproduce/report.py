"""The collected grid as tables to read and as JSON, CSV and Markdown."""

import csv
import json
import math
from pathlib import Path

from tabulate import tabulate

from metrics.judges import mark_biased
from runs.atomic import atomic_write
from runs.log import json_safe

from .collect import RISING, Grid, cells_won, comparisons, mean_and_deviation, paper_value

CITED = "arXiv 2301.10575"


def score_rows(grid: Grid, paper: dict) -> list[dict]:
    """One row for each network on each data set: of every metric its mean, deviation over seeds, and the paper's."""
    rows = []
    for place, losses in grid.scores.items():
        rows += [_score_row(grid, paper, place, loss, losses[loss]) for loss in losses if loss != "bicubic"]
        last = [other for other in grid.scores if other[:2] == place[:2]][-1]
        if "bicubic" in losses and place == last:  # the same for all networks
            rows.append(_score_row(grid, paper, place, "bicubic", losses["bicubic"]) | {"model": "", "seeds": None})
    return rows


def _score_row(grid: Grid, paper: dict, place, loss: str, scores: dict) -> dict:
    images = next(iter(scores.values())).shape[1]
    row = {**place._asdict(), "loss": loss, "images": images, "seeds": len(grid.seeds[place])}
    for metric in grid.metrics:
        if metric in scores:
            mean, deviation = mean_and_deviation(scores[metric].mean(axis=1))
            row[metric], row[f"{metric} sd"] = mean, None if loss == "bicubic" else deviation
            row[f"{metric} paper"] = paper_value(paper, place, loss, metric, grid.protocol)
    return row


def _header(grid: Grid, metric: str) -> str:
    return f"{mark_biased(metric, grid.judges)} {'↑' if metric in RISING else '↓'}"


def _number(value: float | None, deviation: float | None = None, sign: str = "") -> str:
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:{sign}.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def _without_repeats(lines: list[list[str]], columns: int) -> list[list[str]]:
    """The lines with what stands in the line above left out of their first columns."""
    shown, above = [], [""] * columns
    for line in lines:
        same = next((i for i in range(columns) if line[i] != above[i]), columns)
        shown.append([""] * same + line[same:])
        above = line[:columns]
    return shown


def _table(lines: list[list[str]], headers: list[str], left: int, style: str) -> str:
    align = ("left",) * left + ("right",) * (len(headers) - left)
    return tabulate(lines, headers, tablefmt=style, disable_numparse=True, colalign=align)


def scores_table(grid: Grid, rows: list[dict], style: str) -> str:
    """The mean scores ± standard deviation over seeds, the paper's numbers beside those that it has."""
    headers = ["data set (images)", "scale", "model", "loss", "n"]
    beside = {metric for metric in grid.metrics if any(row.get(f"{metric} paper") is not None for row in rows)}
    for metric in grid.metrics:
        headers += [_header(grid, metric), *["paper"] * (metric in beside)]
    lines = []
    for row in rows:
        line = [
            f"{row['dataset']} ({row['images']})",
            f"×{row['scale']}",
            row["model"],
            row["loss"],
            str(row["seeds"] or ""),
        ]
        for metric in grid.metrics:
            line.append(_number(row.get(metric), row.get(f"{metric} sd")))
            line += [_number(row.get(f"{metric} paper"))] * (metric in beside)
        lines.append(line)
    return _table(_without_repeats(lines, 3), headers, 4, style)


def comparison_table(grid: Grid, tests: dict, style: str) -> str:
    """TLW against the plain loss in each metric: by network and for all, gain, images won and the test's p."""
    lines = []
    for pair, by_metric in tests.items():
        for metric, by_network in by_metric.items():
            for network, found in by_network.items():
                model, scale = (network[0], f"×{network[1]}") if network else ("all", "all")
                gain = _number(found.gain, found.deviation, "+")
                p = "" if math.isnan(found.p) else f"{found.p:.2g}"
                won = f"{found.won} of {found.images}"
                lines.append([" against ".join(pair), _header(grid, metric), scale, model, gain, won, p])
    headers = ["TLW", "metric", "scale", "model", "gain", "images won", "p"]
    return _table(_without_repeats(lines, 3), headers, 4, style)


def won_table(grid: Grid, rows: dict, style: str) -> str:
    """In how many data sets x scales x models the mean of TLW is the better one, and in how many in the paper."""
    lines = []
    for pair, by_metric in rows.items():
        line = [" against ".join(pair)]
        for metric in grid.metrics:
            won = by_metric.get(metric)
            paper = f" (paper {won.paper_won} of {won.paper_cells})" if won and won.paper_cells else ""
            line.append(f"{won.won} of {won.cells}{paper}" if won else "")
        lines.append(line)
    return _table(lines, ["table cells won", *(_header(grid, metric) for metric in grid.metrics)], 1, style)


def set_up(grid: Grid) -> str:
    """One line on what was trained, so that nobody takes a short run for the paper's."""
    c = grid.config
    options = " ".join(f"{name}={value}" for name, value in (c.model_options or {}).items())
    length = f"{c.steps} steps" if c.steps else f"{c.endepoch - c.startepoch} epochs"
    images = f"patches of {c.patch}" if c.patch else "whole images"
    return (
        f"{length} of batch {c.batchsize} on {images} of {' '.join(c.trainpath)}; judge {c.judge}, "
        f"M-step {c.m_step}, first weights {c.init}, {c.precision}{'; networks: ' + options if options else ''}"
    )


def notes(grid: Grid, rows: list[dict], tests: dict) -> list[str]:
    """What a reader must know to read the tables rightly."""
    lines = ["n: seeds. Scores are means over images, then over seeds, ± the seeds' sample standard deviation."]
    if any(row.get(f"{metric} paper") is not None for row in rows for metric in grid.metrics):
        lines.append(f"paper: Table I of {CITED}, one run of each network, 100 epochs on T91, BSDS200 and General100.")
    elif grid.protocol != "paper":
        lines.append(f"No numbers of the paper beside protocol {grid.protocol}: they are of protocol paper.")
    if "LPIPS-vgg" in grid.metrics and grid.protocol == "paper":
        lines.append("The paper's LPIPS sees channels as BGR: --bgr.")
    if grid.left_out:
        lines.append(f"Left out, for some of the cells were not evaluated on it: {', '.join(grid.left_out)}.")
    if tests:
        least = min(found.images for by in tests.values() for rows in by.values() for found in rows.values())
        lines.append(
            "gain: by how much TLW is better than the plain loss (less, for ↓), mean over the images of all "
            "data sets ± the seeds' deviation."
        )
        lines.append(
            "p: Wilcoxon's signed-rank test, two-sided, not corrected for how many there are. The pairs are "
            "the images, seeds averaged first (in `all`, networks too): it says whether the gain holds over "
            "images; the ± says whether it holds over trainings."
        )
        if least < 6:
            lines.append(f"With {least} images no p can be below {2 / 2**least:.2g}.")
    return lines


def text(grid: Grid, paper: dict, lacking: list[str], style: str = "simple") -> str:
    """All tables with what must be known to read them, for the terminal or (style github) as Markdown."""
    rows, tests, won = score_rows(grid, paper), comparisons(grid), cells_won(grid, paper)
    parts = [f"Protocol {grid.protocol}; {set_up(grid)}", scores_table(grid, rows, style)]
    if tests:
        parts += [comparison_table(grid, tests, style), won_table(grid, won, style)]
    parts.append("\n".join(f"- {line}" if style == "github" else line for line in notes(grid, rows, tests)))
    if lacking:
        parts.append(f"Not there yet, {len(lacking)} of the grid's cells: {', '.join(lacking)}")
    return "\n\n".join(parts)


def write(path: Path, grid: Grid, paper: dict, lacking: list[str]) -> None:
    """The tables as path.json (all of it), path.csv (the scores) and path.md, each whole or not at all."""
    rows, tests, won = score_rows(grid, paper), comparisons(grid), cells_won(grid, paper)
    result = {
        "protocol": grid.protocol,
        "set-up": set_up(grid),
        "judges": grid.judges,
        "lacking": lacking,
        "seeds": [{**place._asdict(), "seeds": seeds} for place, seeds in grid.seeds.items()],
        "scores": rows,
        "comparisons": [
            {
                "loss": pair[0],
                "against": pair[1],
                "model": network and network[0],
                "scale": network and network[1],
                "metric": metric,
                **found._asdict(),
            }
            for pair, by in tests.items()
            for metric, of in by.items()
            for network, found in of.items()
        ],
        "cells won": [
            {"loss": pair[0], "against": pair[1], "metric": metric, **found._asdict()}
            for pair, of in won.items()
            for metric, found in of.items()
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    json_text = json.dumps(json_safe(result), indent=1, ensure_ascii=False)
    atomic_write(path.with_suffix(".json"), (json_text + "\n").encode())
    atomic_write(path.with_suffix(".md"), (text(grid, paper, lacking, "github") + "\n").encode())
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
