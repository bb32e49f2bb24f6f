"""The scores of a grid: read them from the cells, keep them as CSV, and take differences of losses.

    images.csv      a row per network, scale, loss, seed, checkpoint (best, last), data set and image: its metrics
    trainings.csv   a row per training: steps, learning rate, seconds
    progress.csv    a row per training and validation: step, and its metrics on the validation images
    about.json      protocol, judges, set-up, what was left out

`python -m reproduce.report FOLDER` makes every table from these files alone.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from configs import Config
from data import list_images
from runs.atomic import atomic_write
from runs.history import History, read_history
from training.evaluation import label_folders

from .cells import CHECKPOINTS, Cell, differing, network_name, read_evaluation, saved_config

RISING = ("PSNR-Y", "SSIM-Y")  # metrics for which higher is better; for all others lower is
SAME = 1e-3  # dB by which bicubic's PSNR of one image may differ between devices
# Settings in which the cells of a grid may differ; --budget time changes those from "steps" on.
OWN = {
    "model",
    "model_options",
    "scale",
    "seed",
    "losses",
    "init",
    "learning_rate",
    "steps",
    "milestones",
    "restart_every",
    "step_epochs",
    "k_epochs",
    "udl_epoch",
    "pretrain_epochs",
}
KEYS = ("network", "scale", "loss", "seed", "checkpoint", "dataset")


class Key(NamedTuple):
    """The key of a row of scores; bicubic has no network, seed or checkpoint."""

    network: str
    scale: int
    loss: str
    seed: int | None
    checkpoint: str
    dataset: str


class Results(NamedTuple):
    """The results of a grid's finished cells."""

    scores: dict[Key, dict[str, np.ndarray]]  # by metric: (images,)
    trainings: list[dict]
    names: dict[str, list[str]]  # of the images, by data set
    about: dict
    progress: list[dict]

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that were measured."""
        return list(dict.fromkeys(metric for scores in self.scores.values() for metric in scores))

    def values(self, name: str) -> list:
        """The values of a field of the keys, without bicubic's, in the order of appearance."""
        return list(dict.fromkeys(getattr(key, name) for key in self.scores if key.loss != "bicubic"))


def _logged_seconds(cell: Cell, history: History) -> float | str:
    """The seconds of a training step in the cell's own log, without reading images; "" if not logged."""
    pace = next(iter(history.paces(cell.config.variants).values()), None)
    return float(f"{pace.seconds:.4g}") if pace else ""


def _progress(cell: Cell, history: History) -> list[dict]:
    """The validations in a cell's log, each step once; if a step was logged twice, the later one."""
    own = {"network": cell.network, "scale": cell.config.scale, "loss": cell.loss, "seed": cell.config.seed}
    rows = {}
    for metric in history.metrics:
        (curve,) = history.curves[metric].values()  # a cell has one loss
        for step, value in curve:
            row = rows.setdefault(step, own | {"step": step})
            row[metric] = f"{value:.6g}" if math.isfinite(value) else ""
    return list(rows.values())


def read_cells(
    cells: Iterable[Cell], folders: Iterable[str] = (), seconds_per_step: Mapping = MappingProxyType({})
) -> Results | None:
    """Read the finished cells' evaluations on the data sets that all share; None if none is finished.

    folders: only these data sets. Raises ValueError if the cells do not fit into one table: settings, protocols or
    images differ, or no data set is shared.
    """
    cells, found = list(cells), []
    for cell in cells:
        config = saved_config(cell.folder)
        evaluations = {which: read_evaluation(cell.folder, which) for which in CHECKPOINTS}
        if config is None or None in evaluations.values():
            continue
        found.append((cell, config, evaluations))
        first, about, of_first = found[0]
        names = differing(config, about, OWN) + ["init"] * ("init" in differing(cell.config, config))
        for which, evaluation in evaluations.items():
            for key, default in {"protocol": None, "precision": "fp32"}.items():
                if evaluation.get(key, default) != of_first[which].get(key, default):
                    names = [f"{key} of test_{which}.json"]
        if names:
            raise ValueError(
                f"{cell.folder}: differs from {first.folder} in {', '.join(names)}; one table is of one "
                "set-up, name them apart with --models, --scales and --seeds"
            )
    if not found:
        return None
    labels = label_folders(folders)
    sets = [[row["dataset"] for row in e["rows"]] for *_, evaluations in found for e in evaluations.values()]
    every = dict.fromkeys(name for names in sets for name in names if not labels or name in labels)
    common = [name for name in every if all(name in names for names in sets)]
    if not common:
        raise ValueError(
            f"no data set that all {len(found)} finished cells were evaluated on; start the grid again with --folder"
        )
    scores = {}
    for cell, config, evaluations in found:
        for which, evaluation in evaluations.items():
            for row in evaluation["rows"]:
                own = (network_name(config), config.scale, cell.loss, config.seed, which)
                key = Key(
                    *(("", config.scale, "bicubic", None, "") if row["loss"] == "bicubic" else own), row["dataset"]
                )
                if row["dataset"] in common:
                    new = {metric: np.array(values, dtype=float) for metric, values in row["per_image"].items()}
                    _check_images(key, new, scores, cell)
                    scores.setdefault(key, new)
    config = found[0][1]
    judges = dict.fromkeys(judge for *_, of in found for judge in of["best"]["judge"].split())
    about = {
        "protocol": found[0][2]["best"]["protocol"],
        "judges": list(judges),
        "set-up": _set_up(config),
        "validation": " ".join(config.valpath),
        "left out": [name for name in every if name not in common],
        "lacking": [str(cell) for cell in cells if cell not in [one for one, *_ in found]],
    }
    histories = {cell: read_history(cell.folder) for cell, *_ in found}
    trainings = [
        {
            "network": cell.network,
            "scale": c.scale,
            "loss": cell.loss,
            "seed": c.seed,
            "steps": c.steps or "",
            "learning_rate": c.learning_rate,
            "seconds": round(cell.seconds(), 1),
            "seconds_per_step": seconds_per_step.get(cell.block, {}).get(cell.loss)
            or _logged_seconds(cell, histories[cell]),
        }
        for cell, c, _ in found
    ]
    sizes = {key.dataset: len(next(iter(of.values()))) for key, of in scores.items()}
    names = {name: _image_names(labels.get(name), size) for name, size in sizes.items()}
    progress = [row for cell, history in histories.items() for row in _progress(cell, history)]
    return Results(scores, trainings, names, about, progress)


def _image_names(folder: str | None, size: int) -> list[str]:
    try:
        names = [path.name for path in list_images(folder)] if folder else []
    except ValueError:
        names = []
    return names if len(names) == size else [str(number) for number in range(size)]


def _check_images(key: Key, new: dict[str, np.ndarray], scores: dict, cell: Cell) -> None:
    """Raise ValueError if a data set's name stands for different images in different cells."""
    sizes = {
        len(values)
        for other, of in [*scores.items(), (key, new)]
        if other.dataset == key.dataset
        for values in of.values()
    }
    same = len(sizes) == 1
    if same and key.loss == "bicubic" and key in scores:
        same = np.allclose(scores[key]["PSNR-Y"], new["PSNR-Y"], atol=SAME, equal_nan=True)
    if not same:
        raise ValueError(
            f"{key.dataset} x{key.scale}: bicubic scores of {cell} and of a cell before it differ: other "
            "images under the same name; evaluate all on the same"
        )


def _set_up(c: Config) -> str:
    """One line on the training's length and settings, so that nobody takes a short run for the paper's."""
    length = f"{c.steps} steps" if c.steps else f"{c.endepoch - c.startepoch} epochs"
    images = f"patches of {c.patch}" if c.patch else "whole images"
    sets = " ".join(Path(path).name for path in c.trainpath)
    return (
        f"{length} of batch {c.images_per_step} on {images} of {sets}; judge {c.judge}, M-step {c.m_step}, first "
        f"weights {c.init}, schedule {c.schedule}, {c.precision}"
    )


def write(results: Results, folder: Path) -> None:
    """Write the four files, each atomically. Raises OSError."""
    rows = []
    for key, scores in results.scores.items():
        for i, name in enumerate(results.names[key.dataset]):
            shown = {metric: f"{values[i]:.8g}" for metric, values in scores.items()}
            rows.append(key._asdict() | {"seed": "" if key.seed is None else key.seed, "image": name} | shown)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "images.csv", rows)
    write_csv(folder / "trainings.csv", results.trainings)
    write_csv(folder / "progress.csv", results.progress)
    atomic_write(folder / "about.json", (json.dumps(results.about, indent=1, ensure_ascii=False) + "\n").encode())


def csv_text(rows: list[dict]) -> str:
    """Format rows, whose keys may differ, as CSV."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows, whose keys may differ, as CSV, atomically. Raises OSError."""
    atomic_write(path, csv_text(rows).encode())


def read(folder: Path) -> Results:
    """Read what `write` wrote; progress.csv may be missing. Raises ValueError if another file is."""
    for name in ("images.csv", "trainings.csv", "about.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}; expected the folder of a grid's results")
    lists: dict[Key, dict[str, list]] = {}
    names: dict[str, dict[str, None]] = {}
    for row in read_csv(folder / "images.csv"):
        row |= {"scale": int(row["scale"]), "seed": int(row["seed"]) if row["seed"] else None}
        of = lists.setdefault(Key(*(row.pop(name) for name in KEYS)), {})
        names.setdefault(list(lists)[-1].dataset, {})[row.pop("image")] = None
        for metric, value in row.items():
            if value:
                of.setdefault(metric, []).append(float(value))
    scores = {key: {metric: np.array(values) for metric, values in of.items()} for key, of in lists.items()}
    progress = folder / "progress.csv"
    return Results(
        scores,
        read_csv(folder / "trainings.csv"),
        {name: list(of) for name, of in names.items()},
        json.loads((folder / "about.json").read_text()),
        read_csv(progress) if progress.is_file() else [],
    )


def read_csv(path: Path) -> list[dict]:
    """Read the rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- two losses against each other -----------------------------------------------------------------------------------


def label_of(loss: str) -> str:
    """A loss's name in tables: its label if it has one, L1+TLW[wc=one,label=map] -> map."""
    found = re.search(r"\blabel=([^,\]]+)", loss)
    return found[1] if found else loss


def plain(loss: str) -> str:
    """A loss without its own settings: L1+TLW[wc=one] -> L1+TLW."""
    return loss.partition("[")[0]


def pairs_of(losses: Iterable[str]) -> list[tuple[str, str]]:
    """Pair each loss with the ones it builds on, if they are among losses.

    L1+TLW[wc=one] with L1+TLW and with L1; L1+TLW+DP with L1+DP; L1+UDL with L1.
    """
    losses, pairs = list(losses), []
    for loss in losses:
        own = plain(loss)
        without = own.replace("+TLW", "") if "+TLW" in own else own.partition("+")[0]
        pairs += [(loss, other) for other in dict.fromkeys((own, without)) if other != loss and other in losses]
    return pairs


def by_seed(results: Results, loss: str, metric: str, checkpoint: str) -> dict[tuple[str, int], dict[int, np.ndarray]]:
    """The scores of a loss by (network, scale) and by seed: (images,), all data sets concatenated."""
    found: dict[tuple[str, int], dict[int, list]] = {}
    for key in sorted(results.scores, key=lambda key: key.dataset):
        if (key.loss, key.checkpoint) == (loss, checkpoint) and metric in results.scores[key]:
            seeds = found.setdefault((key.network, key.scale), {})
            seeds.setdefault(key.seed, []).append(results.scores[key][metric])
    order = [(network, scale) for network in results.values("network") for scale in sorted(results.values("scale"))]
    return {
        cell: {seed: np.concatenate(of) for seed, of in sorted(found[cell].items())} for cell in order if cell in found
    }


def gains(
    results: Results, pair: tuple[str, str], metric: str, checkpoint: str = "best"
) -> dict[tuple[str, int], np.ndarray]:
    """The gain of the first loss over the second by (network, scale): (seeds of both, images)."""
    one, other = (by_seed(results, loss, metric, checkpoint) for loss in pair)
    sign = 1 if metric in RISING else -1
    both = {cell: [seed for seed in one[cell] if seed in other.get(cell, {})] for cell in one}
    return {
        cell: sign * np.array([one[cell][seed] - other[cell][seed] for seed in seeds])
        for cell, seeds in both.items()
        if seeds
    }
