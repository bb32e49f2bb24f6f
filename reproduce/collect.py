"""The evaluations of a grid's cells, and the statistics of Table I: spread over seeds, wins of TLW, paired tests.

What is compared is a loss with TLW against the plain one of the same run: same first weights, same batches.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from configs import Config

from .cells import KEYS, Cell, differing, read_evaluation, saved_config

PAPER_FILE = Path(__file__).with_name("table1_paper.csv")
RISING = ("PSNR-Y", "SSIM-Y")  # metrics of which more is better; of all others, less
SAME = 1e-3  # by how much the bicubic rows of one image may differ between devices, in dB


class Place(NamedTuple):
    """What a block of Table I is about."""

    dataset: str
    scale: int
    model: str


Scores = dict[str, dict[str, np.ndarray]]  # by loss and metric, (seeds, images)


class Grid(NamedTuple):
    """The evaluations of cells: scores by place, the seeds in the order of the scores' first axis, and the settings."""

    scores: dict[Place, Scores]
    seeds: dict[Place, list[int]]
    config: Config  # of one of them
    protocol: str
    judges: list[str]
    left_out: list[str]  # data sets that only some of the cells were evaluated on

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that were measured."""
        return list(dict.fromkeys(m for losses in self.scores.values() for of in losses.values() for m in of))


def read_grid(cells: Iterable[Cell], datasets: Iterable[str] = ()) -> Grid | None:
    """The evaluations of the finished cells among those given (None: there is none) on the data sets that all share.

    datasets: only these.
    Raises ValueError where they cannot stand in one table: other settings, another protocol, other images.
    """
    found = []
    for cell in cells:
        evaluation, config = read_evaluation(cell.folder), saved_config(cell.folder)
        if evaluation is None or config is None:
            continue
        first = found[0] if found else (cell.folder, config, evaluation)
        names = differing(config, first[1], KEYS)
        for key, default in {"protocol": None, "precision": "fp32"}.items():
            if evaluation.get(key, default) != first[2].get(key, default):
                names = [f"{key} of val.json"]
        if names:
            raise ValueError(
                f"{cell.folder}: differs from {first[0]} in {', '.join(names)}; one table is of one "
                "set-up, name them apart with --models, --scales and --seeds"
            )
        found.append((cell.folder, config, evaluation))
    if not found:
        return None
    names = [{row["dataset"]: None for row in evaluation["rows"]} for *_, evaluation in found]
    names = [[name for name in of if not datasets or name in datasets] for of in names]
    common = [name for name in names[0] if all(name in of for of in names)]
    left_out = sorted({name for of in names for name in of} - set(common))
    if not common:
        raise ValueError(
            f"no data set that all {len(found)} finished cells were evaluated on; start the grid again with --folder"
        )
    parts: dict[Place, dict[int, dict[str, dict]]] = {}
    for _, config, evaluation in found:
        for row in evaluation["rows"]:
            if row["dataset"] in common:
                place = Place(row["dataset"], config.scale, config.model)
                parts.setdefault(place, {}).setdefault(config.seed, {})[row["loss"]] = row["per_image"]
    scores = {place: _stacked(by_seed, place) for place, by_seed in parts.items()}
    _check_images(scores)
    seeds = {place: sorted(by_seed) for place, by_seed in parts.items()}
    judges = list(dict.fromkeys(judge for *_, evaluation in found for judge in evaluation["judge"].split()))
    scores = dict(sorted(scores.items(), key=_paper_order))
    return Grid(scores, seeds, found[0][1], found[0][2]["protocol"], judges, left_out)


def _paper_order(item: tuple[Place, Scores]) -> tuple:
    order = ["Urban100", "Set5", "Set14", "BSDS100", "Manga109"]
    dataset, scale, model = item[0]
    known = order.index(dataset) if dataset in order else len(order)
    models = ("RCAN", "VDSR", "EDSR")
    return known, dataset, scale, models.index(model) if model in models else len(models), model


def _stacked(by_seed: dict[int, dict[str, dict]], place: Place) -> Scores:
    """{seed: {loss: {metric: [score of each image]}}} -> {loss: {metric: (seeds, images)}}; None becomes NaN."""
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    losses = [loss for loss in runs[0] if all(loss in run for run in runs)]
    scores = {}
    for loss in losses:
        metrics = [metric for metric in runs[0][loss] if all(metric in run[loss] for run in runs)]
        values = {metric: [run[loss][metric] for run in runs] for metric in metrics}
        if len({len(one) for many in values.values() for one in many}) > 1:
            raise ValueError(
                f"{place.dataset} x{place.scale}, {place.model}: the seeds were evaluated on different "
                "numbers of images; evaluate all on the same"
            )
        scores[loss] = {metric: np.array(many, dtype=float) for metric, many in values.items()}
    return scores


def _check_images(scores: dict[Place, Scores]) -> None:
    """Raise ValueError where bicubic scores show that one data set's name stood for different images."""
    first: dict[tuple, tuple[str, np.ndarray]] = {}
    for place, losses in scores.items():
        for row in losses["bicubic"]["PSNR-Y"] if "bicubic" in losses else ():
            model, wanted = first.setdefault(place[:2], (place.model, row))
            if wanted.shape != row.shape or not np.allclose(wanted, row, atol=SAME, equal_nan=True):
                raise ValueError(
                    f"{place.dataset} x{place.scale}: bicubic scores of {place.model} and {model} differ: "
                    "other images under the same name; evaluate all on the same"
                )


def read_paper(path: Path = PAPER_FILE) -> dict[tuple[Place, str], dict[str, float]]:
    """The paper's Table I: {(place, loss): {"PSNR": ..., "LPIPS": ...}}, places of bicubic without a model."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    table: dict[tuple[Place, str], dict[str, float]] = {}
    for row in csv.DictReader(lines):
        model, loss = ("", "bicubic") if row["model"] == "bicubic" else (row["model"], row["loss"])
        for name, value in row.items():
            dataset, _, metric = name.partition("_")
            if metric:
                table.setdefault((Place(dataset, int(row["scale"]), model), loss), {})[metric] = float(value)
    return table


def paper_metric(metric: str, protocol: str) -> str | None:
    """The column of the paper's Table I beside which a metric may stand; None: beside none."""
    columns = {"PSNR-Y": "PSNR", "LPIPS-vgg": "LPIPS", "LPIPS-vgg-BGR": "LPIPS"}
    return columns.get(metric) if protocol == "paper" else None


def paper_value(paper: dict, place: Place, loss: str, metric: str, protocol: str) -> float | None:
    """The paper's number for a network's mean score on a data set; None where it has none."""
    place = place._replace(model="") if loss == "bicubic" else place
    column = paper_metric(metric, protocol)
    return paper.get((place, loss), {}).get(column) if column else None


def mean_and_deviation(per_seed: np.ndarray) -> tuple[float, float | None]:
    """The mean over seeds (seeds,) and their sample standard deviation, None where there is but one."""
    return float(per_seed.mean()), float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None


def pairs_of(losses: Iterable[str]) -> list[tuple[str, str]]:
    """The losses with TLW, each with the plain one it is compared to: L1+TLW with L1, L1+TLW+DP with L1+DP."""
    losses = list(losses)
    pairs = [(loss, loss.replace("+TLW", "")) for loss in losses if "+TLW" in loss]
    return [pair for pair in pairs if pair[1] in losses]


def gains(losses: Scores, pair: tuple[str, str], metric: str) -> np.ndarray | None:
    """By how much the first loss of the pair is better than the second, (seeds, images); None where not measured."""
    if any(metric not in losses.get(loss, {}) for loss in pair):
        return None
    difference = losses[pair[0]][metric] - losses[pair[1]][metric]
    return difference if metric in RISING else -difference


class Comparison(NamedTuple):
    """TLW against the plain loss over images; gain > 0 is TLW's."""

    gain: float
    deviation: float | None  # over seeds; of one alone there is none
    won: int  # images on which TLW is better, the mean over seeds taken
    images: int
    p: float  # Wilcoxon signed-rank, two-sided


def compare(by_seed: np.ndarray) -> Comparison:
    """The gains (seeds, images) of one network, tested: the pairs are the images, seeds are averaged first.

    Seeds of one image are no independent pairs: each would count the same image again.
    """
    by_image = by_seed.mean(axis=0)
    p = math.nan if np.isnan(by_image).any() else float(wilcoxon(by_image).pvalue) if by_image.any() else 1.0
    return Comparison(*mean_and_deviation(by_seed.mean(axis=1)), int((by_image > 0).sum()), by_image.size, p)


def compare_all(by_network: list[np.ndarray]) -> Comparison:
    """The gains of several networks, (seeds, images) each, on the same images, tested once.

    The pairs are again the images, each with its mean over networks and seeds: the same image in another network is no
    new one. Without a deviation, for networks have their own.
    """
    by_image = np.mean([by_seed.mean(axis=0) for by_seed in by_network], axis=0)
    return compare(by_image[None])


def comparisons(grid: Grid) -> dict[tuple[str, str], dict[str, dict[tuple[str, int] | None, Comparison]]]:
    """By pair of losses, metric, and model and scale (None: all of them); the images of all data sets together."""
    result = {}
    datasets = sorted({place.dataset for place in grid.scores})
    networks = list(dict.fromkeys((place.model, place.scale) for place in grid.scores))
    for pair in pairs_of(dict.fromkeys(loss for losses in grid.scores.values() for loss in losses)):
        for metric in grid.metrics:
            pooled = {}
            for model, scale in networks:
                parts = [gains(grid.scores[Place(dataset, scale, model)], pair, metric) for dataset in datasets]
                if all(part is not None for part in parts):
                    pooled[model, scale] = np.concatenate(parts, axis=1)
            rows = {network: compare(by_seed) for network, by_seed in pooled.items()}
            if len(pooled) > 1:
                rows[None] = compare_all(list(pooled.values()))
            if rows:
                result.setdefault(pair, {})[metric] = rows
    return result


class Won(NamedTuple):
    """In how many of the table's cells (data set x scale x model) the mean of TLW is the better one."""

    won: int
    cells: int
    paper_won: int  # of the paper's numbers in those of these cells that it has
    paper_cells: int


def cells_won(grid: Grid, paper: dict) -> dict[tuple[str, str], dict[str, Won]]:
    """By pair of losses and metric; a tie is no win."""
    result: dict[tuple[str, str], dict[str, Won]] = {}
    for place, losses in grid.scores.items():
        for pair in pairs_of(losses):
            for metric in grid.metrics:
                by_seed = gains(losses, pair, metric)
                if by_seed is None:
                    continue
                theirs = [paper_value(paper, place, loss, metric, grid.protocol) for loss in pair]
                has = None not in theirs
                theirs_won = has and (theirs[0] > theirs[1] if metric in RISING else theirs[0] < theirs[1])
                counts = (by_seed.mean() > 0, 1, theirs_won, has)
                before = result.setdefault(pair, {}).get(metric, (0, 0, 0, 0))
                result[pair][metric] = Won(*(int(a + b) for a, b in zip(before, counts)))
    return result
