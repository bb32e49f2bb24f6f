"""The rows of an evaluation, one per method, data set and protocol: as a table and for val.json."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tabulate import tabulate

from metrics.evaluate import count_infinite, mean_scores
from metrics.judges import mark_biased
from metrics.published import check_bicubic
from runs.history import Pace

from .validation import EvaluationSet


class Method(NamedTuple):
    """A source of SR images."""

    loss: str  # the loss of a run's network, "bicubic", or the name of a folder of finished SR images
    checkpoint: str = ""  # "best", "last" or "step_1000"; "" if it is no network of a run


class Row(NamedTuple):
    """One method on one data set under one protocol."""

    dataset: str
    protocol: str
    method: Method
    scores: dict[str, list[float]]  # by metric, one per image
    note: str = ""
    pace: Pace | None = None  # of the network's training steps, if logged


def table(rows: Sequence[Row], judges: Collection[str] = ()) -> str:
    """The table of mean scores; metrics that share a network with one of the judges are marked."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    both = len({row.method.checkpoint for row in rows} - {""}) > 1
    timed = any(row.pace for row in rows)
    lines, before = [], ("", "")
    for row in rows:
        means = mean_scores(row.scores)
        size = len(row.scores["PSNR-Y"])
        place = (f"{row.dataset} ({size})", row.protocol)
        shown = ["", ""] if place == before else ["" if place[0] == before[0] else place[0], place[1]]
        method = f"{row.method.loss} {row.method.checkpoint}".strip() if both else row.method.loss
        values = [f"{means[n]:.4f}" if n in means else "" for n in names]
        lines.append([*shown, method, *values, *([str(row.pace or "")] * timed), row.note])
        before = place
    headers = ["data set (images)", "protocol", "method", *(mark_biased(name, judges) for name in names)]
    headers += ["s/step (x plain)"] * timed + ["note"]
    align = ["left"] * 3 + ["right"] * (len(names) + timed) + ["left"]
    if not any(row.note for row in rows):
        lines, headers, align = [line[:-1] for line in lines], headers[:-1], align[:-1]
    return tabulate(lines, headers, disable_numparse=True, colalign=align)


def untested(losses: Collection[str]) -> str:
    """A sentence on what the scores of several networks of one run cannot tell; empty for one network."""
    if len(losses) < 2:
        return ""
    return (
        f"{len(losses)} networks, 1 seed: no test of which loss is better, for that takes more seeds (docs/results.md)"
    )


def rows_of(
    name: str,
    images: EvaluationSet,
    scores: Mapping,
    best: str,
    folders: Collection[str],
    paces: Mapping[str, Pace] = MappingProxyType({}),
) -> list[Row]:
    """The rows of a data set, from what `score` returned, with notes.

    best: the note on `best` networks; folders: the names of finished SR images; paces: of the run's losses.
    """
    rows = []
    for protocol, of in scores.items():
        for method, by_metric in of.items():
            notes = [best] if method.checkpoint == "best" else ["8-bit files"] if method.loss in folders else []
            if method == Method("bicubic"):
                place = os.path.abspath(images.folder)
                notes = [check_bicubic(place, protocol, images.scale, len(images), mean_scores(by_metric))]
            for metric, count in count_infinite(by_metric).items():
                notes.append(f"{metric} of {count} infinite" + ", not in the mean" * (count < len(images)))
            pace = paces.get(method.loss) if method.checkpoint else None
            rows.append(Row(name, protocol, method, by_metric, "; ".join(filter(None, notes)), pace))
    return rows


def entries_of(
    rows: Sequence[Row], sets: Mapping[str, EvaluationSet], checkpoints: Sequence[str], about: dict
) -> list[dict]:
    """The entries of val.json by data set, protocol and checkpoint; rows without a checkpoint are in each."""
    entries = []
    for name, images in sets.items():
        for protocol in images.protocols:
            for checkpoint in checkpoints:
                own = [r for r in rows if (r.dataset, r.protocol) == (name, protocol)]
                own = [_json_row(r, images) for r in own if r.method.checkpoint in ("", checkpoint)]
                place = {"folder": _absolute(images.folder), "lr_folder": _absolute(images.lr_folder or "")}
                head = {"protocol": protocol, "dataset": name, **place, "checkpoint": checkpoint, **about}
                entries.append(head | {"left_out": images.left_out, "rows": own})
    return entries


def _json_row(row: Row, images: EvaluationSet) -> dict:
    per_image = [dict(zip(row.scores, values)) for values in zip(*row.scores.values())]
    infinite = count_infinite(row.scores)
    return {
        "loss": row.method.loss,
        "files": len(per_image),
        **mean_scores(row.scores),
        **({"seconds_per_step": row.pace.seconds, "times_plain": row.pace.ratio} if row.pace else {}),
        "note": row.note,
        **({"infinite": infinite} if infinite else {}),
        "per_image": dict(zip(images.names, per_image)),
    }


def _absolute(folder: str) -> str:
    return folder if not folder or folder.startswith("skimage:") else os.path.abspath(folder)


def most_different_images(rows: Sequence[Row], count: int) -> list[tuple[str, int, Method, Method]]:
    """The images on which two methods differ most: (data set, index, method, method).

    rows: of one protocol, bicubic first in each data set; it counts only if there is just one other method. The
    difference is measured by the first perceptual metric, else by PSNR-Y.
    """
    found = []
    for name in dict.fromkeys(row.dataset for row in rows):
        of = [row for row in rows if row.dataset == name]
        of = of[1:] if len(of) > 2 else of
        metric = next((m for m in of[0].scores if not m.startswith(("PSNR", "SSIM"))), "PSNR-Y")
        for i in range(len(of[0].scores[metric])):
            values = {row.method: row.scores[metric][i] for row in of if math.isfinite(row.scores[metric][i])}
            if len(values) > 1:
                low, high = min(values, key=values.get), max(values, key=values.get)
                found.append((values[high] - values[low], name, i, low, high))
    found.sort(key=lambda each: -each[0])
    return [each[1:] for each in found[:count]]
