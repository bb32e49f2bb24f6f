"""The tables of a grid's results: scores, costs, and each loss against the ones it builds on.

python -m reproduce.report checkpoints/grid                          the tables, from the files that the grid wrote
python -m reproduce.report checkpoints/grid --compare L1+UDL L1+TLW --checkpoint last
python -m reproduce.report checkpoints/grid --checkpoint last --brief      only gains and intervals, as Markdown
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

import configs
from metrics.judges import mark_biased
from runs.atomic import atomic_write
from runs.history import Pace

from . import collect
from .collect import RISING, Key, Results, label_of
from .papers import NAMES, Paper, read_paper
from .statistics import LEAST, compare, holm, null_rates


def add_flags(parser) -> None:
    """Add the flags that choose what is compared."""
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        default=[],
        metavar=("LOSS", "OTHER"),
        help="compare these two, not each loss with the ones it builds on; may be given several times",
    )
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="compare the networks of the best validation, or of the end (default: best)",
    )
    parser.add_argument(
        "--null",
        metavar="LOSS",
        help="compare this loss with itself under other seeds: the first half of its seeds with the second",
    )


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation, which is None for a single value."""
    values = np.array(list(values))
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None


def score_rows(results: Results, paper: Paper) -> list[dict]:
    """Mean and deviation of each metric over seeds, by data set, scale, network, loss and checkpoint."""
    groups: dict[tuple, list[Key]] = {}
    for key in results.scores:
        groups.setdefault((key.dataset, key.scale, key.network, key.loss, key.checkpoint), []).append(key)
    datasets = list(dict.fromkeys(key.dataset for key in results.scores))
    networks = results.values("network")
    losses = [*results.values("loss"), "bicubic"]

    def place(group) -> tuple:
        dataset, scale, network, loss, checkpoint = group
        return (
            datasets.index(dataset),
            scale,
            networks.index(network) if network else len(networks),
            losses.index(loss),
            checkpoint,
        )

    rows = []
    for group in sorted(groups, key=place):
        dataset, scale, network, loss, checkpoint = group
        of = [results.scores[key] for key in groups[group]]
        row = {
            "dataset": dataset,
            "images": len(results.names[dataset]),
            "scale": scale,
            "network": network,
            "loss": loss,
            "checkpoint": checkpoint,
            "seeds": len(of) if checkpoint else None,
        }
        for metric in results.metrics:
            if all(metric in scores for scores in of):
                row[metric], row[f"{metric} sd"] = mean_and_deviation(scores[metric].mean() for scores in of)
                beside = (metric, results.about["protocol"])
                number = paper.number(network, scale, label_of(loss), dataset, *beside)
                if checkpoint != "last" and number is not None:
                    row[f"{metric} paper"] = number
        rows.append(row)
    return rows


def comparison_rows(results: Results, pairs: Iterable[Sequence[str]] = (), checkpoint: str = "best") -> list[dict]:
    """A row per pair of losses, metric and network, then for all networks; p adjusted over all rows.

    pairs: of losses (default: each loss against what it builds on). Raises ValueError for an unknown loss.
    """
    by_label = {label_of(loss): loss for loss in results.values("loss")}
    pairs = [tuple(by_label.get(loss, loss) for loss in pair) for pair in pairs]
    pairs = pairs or collect.pairs_of(results.values("loss"))
    for loss in {loss for pair in pairs for loss in pair}:
        configs.choose(loss, results.values("loss"), "loss among the finished cells")
    rows = []
    other = "last" if checkpoint == "best" else "best"
    for pair in pairs:
        for metric in results.metrics:
            by_cell = collect.gains(results, pair, metric, checkpoint)
            beside = collect.gains(results, pair, metric, other)
            blocks = {cell: {cell: by_cell[cell]} for cell in by_cell} | (
                {("all", "all"): by_cell} if len(by_cell) > 1 else {}
            )
            for (network, scale), block in blocks.items():
                at_other = np.concatenate([beside[cell] for cell in block]).mean()
                rows.append(
                    {
                        "loss": pair[0],
                        "against": pair[1],
                        "metric": metric,
                        "network": network,
                        "scale": scale,
                        "checkpoint": checkpoint,
                        **compare(block)._asdict(),
                        f"gain {other}": float(at_other),
                    }
                )
    adjusted = iter(holm(np.array([row["p"] for row in rows if not math.isnan(row["p"])])).tolist() if rows else ())
    for row in rows:
        row["p Holm"] = math.nan if math.isnan(row["p"]) else next(adjusted)
    return rows


def null_rows(results: Results, args) -> list[dict]:
    """A row per metric for args.null against itself: a comparison, and error rates of random pairings."""
    configs.choose(args.null, results.values("loss"), "loss among the finished cells")
    rows = []
    for metric in results.metrics:
        cells = collect.by_seed(results, args.null, metric, args.checkpoint)
        half = min(map(len, cells.values())) // 2
        configs.expect(half > 0, "null", args.null, "two seeds of it or more in each cell, raise --seeds")
        whole = {cell: np.array([*seeds.values()][: 2 * half]) for cell, seeds in cells.items()}
        compared = compare({cell: of[:half] - of[half:] for cell, of in whole.items()})
        rows.append({"loss": args.null, "metric": metric, **compared._asdict(), **null_rates(whole)})
    return rows


def _header(results: Results, metric: str) -> str:
    return f"{mark_biased(metric, results.about['judges'])} {'↑' if metric in RISING else '↓'}"


def _number(value: float | None, deviation: float | None = None) -> str:
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def without_repeats(lines: list[list[str]], columns: int) -> list[list[str]]:
    """Blank the leading cells of each line that repeat the line above, in the first columns."""
    shown, above = [], [""] * columns
    for line in lines:
        same = next((i for i in range(columns) if line[i] != above[i]), columns)
        shown.append([""] * same + line[same:])
        above = line[:columns]
    return shown


def _table(lines: list[list[str]], headers: list[str], left: int, style: str) -> str:
    align = ("left",) * left + ("right",) * (len(headers) - left)
    return tabulate(without_repeats(lines, left - 1), headers, tablefmt=style, disable_numparse=True, colalign=align)


def scores_table(results: Results, rows: list[dict], style: str) -> str:
    """The mean scores ± standard deviation over seeds, with the paper's numbers if it has any."""
    beside = {metric for metric in results.metrics if any(row.get(f"{metric} paper") is not None for row in rows)}
    headers = ["data set (images)", "scale", "network", "loss", "at", "n"]
    for metric in results.metrics:
        headers += [_header(results, metric), *["paper"] * (metric in beside)]
    lines = []
    for row in rows:
        line = [
            f"{row['dataset']} ({row['images']})",
            f"×{row['scale']}",
            row["network"],
            label_of(row["loss"]),
            row["checkpoint"],
            str(row["seeds"] or ""),
        ]
        for metric in results.metrics:
            line.append(_number(row.get(metric), row.get(f"{metric} sd")))
            line += [_number(row.get(f"{metric} paper"))] * (metric in beside)
        lines.append(line)
    return _table(lines, headers, 5, style)


def costs_table(results: Results, style: str) -> str:
    """Steps, learning rate, seconds and seconds per step of each loss's trainings: means over trainings.

    Seconds are those of the grid's machine, however busy it was; a step's are also shown relative to the plain loss, L1
    or MSE.
    """
    groups: dict[tuple, list[dict]] = {}
    for training in results.trainings:
        groups.setdefault((training["network"], training["scale"], training["loss"]), []).append(training)
    lines, per_step = [], {}
    for key, of in groups.items():
        measured = [float(training["seconds_per_step"]) for training in of if training["seconds_per_step"]]
        per_step[key] = mean_and_deviation(measured)[0] if measured else None
    for (network, scale, loss), of in groups.items():
        seconds, _ = mean_and_deviation(float(training["seconds"]) for training in of)
        own, plain = (per_step.get((network, scale, name)) for name in (loss, loss.split("+")[0]))
        lines.append(
            [
                network,
                f"×{scale}",
                label_of(loss),
                str(of[0]["steps"]),
                str(of[0]["learning_rate"]),
                f"{seconds:.0f}",
                str(Pace(own, own / plain if plain else None)) if own else "",
            ]
        )
    return _table(lines, ["network", "scale", "loss", "steps", "rate", "seconds", "s/step (x plain)"], 3, style)


def _shown(row: dict) -> list[str]:
    """Format gain, interval, wins and p of a comparison."""
    bounds = "" if math.isnan(row["low"]) else f"{row['low']:+.2g} to {row['high']:+.2g}"
    won = "" if math.isnan(row["p"]) else f"{row['won']} of {row['pairs']}"
    return [f"{row['gain']:+.3g}", bounds, won, "" if math.isnan(row["p"]) else f"{row['p']:.2g}"]


def comparison_table(results: Results, rows: list[dict], style: str) -> str:
    """One loss against another, by metric and by network, then for all: gain, interval, wins and p."""
    lines = []
    for row in rows:
        scale = row["scale"] if row["scale"] == "all" else f"×{row['scale']}"
        other = next(name for name in row if name.startswith("gain "))
        p = "" if math.isnan(row["p Holm"]) else f"{row['p Holm']:.2g}"
        lines.append(
            [
                f"{label_of(row['loss'])} against {label_of(row['against'])}",
                _header(results, row["metric"]),
                row["network"],
                scale,
                *_shown(row),
                p,
                f"{row[other]:+.3g}",
            ]
        )
    at = rows[0]["checkpoint"]
    other = "last" if at == "best" else "best"
    headers = [
        "loss",
        "metric",
        "network",
        "scale",
        f"gain ({at})",
        "95 % interval",
        "trainings won",
        "p",
        "p (Holm)",
        f"gain ({other})",
    ]
    return _table(lines, headers, 4, style)


def shown_gain(row: dict) -> str:
    """Format a comparison's gain with its interval, and p if there are enough trainings for a test."""
    gain, bounds, *_ = _shown(row)
    p = "" if math.isnan(row["p Holm"]) else f"; p {row['p Holm']:.2g}"
    return f"{gain} ({bounds}{p})" if bounds else gain


def brief_table(results: Results, rows: list[dict]) -> str:
    """One loss against another, as Markdown: each metric's gain with its interval, by network and for all.

    p is corrected for all p of the table (Holm).
    """
    lines: dict[tuple, list[str]] = {}
    for row in rows:
        scale = "all" if row["scale"] == "all" else f"{row['network']} ×{row['scale']}"
        key = (f"`{label_of(row['loss'])}`", f"`{label_of(row['against'])}`", scale)
        lines.setdefault(key, []).append(shown_gain(row))
    several = len({key[2] for key in lines}) > 1
    headers = ["loss", "against", *["network"] * several, *(_header(results, metric) for metric in results.metrics)]
    return markdown([[*key[: 2 + several], *cells] for key, cells in lines.items()], headers)


def markdown(lines: Iterable[list[str]], headers: list[str]) -> str:
    """A table in Markdown, without padding."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (headers, ["---"] * len(headers), *lines))


def null_table(results: Results, rows: list[dict], style: str) -> str:
    """A loss against itself: one comparison, and the error rates of random pairings."""
    lines = [
        [
            f"{row['loss']} against itself",
            _header(results, row["metric"]),
            *_shown(row),
            "" if math.isnan(row["false positives"]) else f"{row['false positives']:.1%}",
            f"{row['coverage']:.1%}",
        ]
        for row in rows
    ]
    headers = ["loss", "metric", "gain", "95 % interval", "trainings won", "p", "p ≤ 5 %", "interval holds 0"]
    return _table(lines, headers, 2, style)


def notes(results: Results, rows: list[dict], tests: list[dict], null: list[dict], paper: Paper) -> list[str]:
    """The notes that a reader needs to read the tables correctly."""
    about = results.about
    lines = [
        "n: trainings (seeds). Scores are means over images, then over seeds, ± the seeds' sample standard deviation. "
        f"best: the epoch of the best validation, on {about['validation']}, none of them a test image; last: the end."
    ]
    if any(row.get(f"{metric} paper") is not None for row in rows for metric in results.metrics):
        lines.append(f"paper: {paper.note}")
    if about["left out"]:
        lines.append(f"Left out, because some cells were not evaluated on it: {', '.join(about['left out'])}.")
    if tests:
        lines.append(
            "gain: how much better the loss is (lower, for ↓), mean over trainings and the images of all data "
            "sets. A training is compared with the other loss's training of the same seed. The interval is for "
            "other trainings and other images like these, p (sign flips of trainings) for other trainings on "
            "these images; p (Holm) is corrected for all p of the table."
        )
        lines += _what_is_missing(tests)
    if null:
        lines.append(
            "There is no difference to find: p should be at most 5 % in at most 5 % of all pairings, and the interval "
            "should hold 0 in 95 %. The percentages are of random pairings of these trainings: they say more than one "
            "comparison, and less than as many independent ones."
        )
    return lines


def _what_is_missing(tests: list[dict]) -> list[str]:
    tested = [row["pairs"] for row in tests if not math.isnan(row["p"])]
    if min(row["seeds"] for row in tests) < 2:
        return ["One seed: chance between trainings is unknown, so no test and no winner; add --seeds 2 or more."]
    if not tested:
        return [f"Fewer than {LEAST} trainings of a loss: the interval alone, no test; add --seeds."]
    least = len(tested) * 2 / 2 ** max(tested)
    if least <= 0.05:
        return []
    found = f"With {max(tested)} trainings and {len(tested)} tests no p (Holm) can be below {least:.2g}"
    return [f"{found}; add --seeds, or --compare only the losses in question."]


def text(results: Results, args, paper: Paper, style: str = "simple") -> str:
    """All tables with their notes, for the terminal or, in style github, as Markdown."""
    rows, tests = score_rows(results, paper), comparison_rows(results, args.compare, args.checkpoint)
    null = null_rows(results, args) if args.null else []
    parts = [
        f"Protocol {results.about['protocol']}; {results.about['set-up']}",
        scores_table(results, rows, style),
        costs_table(results, style),
    ]
    parts += [comparison_table(results, tests, style)] if tests else []
    parts += [null_table(results, null, style)] if null else []
    found = notes(results, rows, tests, null, paper)
    parts.append("\n".join(f"- {line}" if style == "github" else line for line in found))
    if lacking := results.about["lacking"]:
        parts.append(f"Not finished, {len(lacking)} of the grid's cells: {', '.join(lacking)}")
    return "\n\n".join(parts)


def write(results: Results, args, paper: Paper, folder: Path) -> list[Path]:
    """Write tables.md, scores.csv and, if losses are compared, comparisons.csv; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "tables.md", folder / "scores.csv"]
    atomic_write(paths[0], (text(results, args, paper, "github") + "\n").encode())
    collect.write_csv(paths[1], score_rows(results, paper))
    if tests := comparison_rows(results, args.compare, args.checkpoint):
        paths.append(folder / "comparisons.csv")
        collect.write_csv(paths[-1], tests)
    return paths


def main(argv: list[str] | None = None) -> None:
    parser = configs.OneLineParser(prog="reproduce.report", description="The tables of a grid's results.")
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="a grid's results: images.csv, trainings.csv and about.json"
    )
    add_flags(parser)
    parser.add_argument(
        "--paper",
        nargs="?",
        const="table1",
        choices=NAMES,
        help="show a paper's numbers beside ours: TLW's Table I (table1) or II (table2), DP's tables (dp)",
    )
    parser.add_argument("--brief", action="store_true", help="print only gains and intervals; write nothing")
    args = parser.parse_args(argv)
    with configs.one_line_errors("reproduce.report"):
        results, paper = collect.read(args.folder), read_paper(args.paper) if args.paper else Paper()
        if args.brief:
            print(brief_table(results, comparison_rows(results, args.compare, args.checkpoint)))
            return
        print(text(results, args, paper))
        print("\nwritten: " + ", ".join(map(str, write(results, args, paper, args.folder))))


if __name__ == "__main__":
    main()
