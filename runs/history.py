"""Read a run's log: its starts, notes, curves over steps and over time, and the time of a step."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from configs import Config, Variant

Curve = list[tuple[float, float]]  # (step or seconds, value)
# The keys of the line that each start logs: see training/provenance.py.
START = {"started", "command", "folder", "device", "processes", "versions", "images"}
NOT_CURVES = {"step", "epoch", "elapsed", "validation", "seconds_per_step"}


class Pace(NamedTuple):
    """The time of a training step of one loss."""

    seconds: float  # mean of a step
    ratio: float | None  # to the plain loss's seconds (L1 or MSE); None if that was not trained

    def __str__(self) -> str:
        return f"{self.seconds:.3g}" + (f" ({self.ratio:.3g}x)" if self.ratio is not None else "")


@dataclass
class History:
    """A run's log."""

    starts: list[dict] = field(default_factory=list)  # the line that each start logs
    notes: list[str] = field(default_factory=list)  # includes left-out images
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)  # by quantity ("loss", "WC", "PSNR-Y") and loss
    metrics: list[str] = field(default_factory=list)  # the quantities that validations measure
    steps: int = 0  # the last step logged
    damaged: int = 0  # number of unreadable lines
    # By loss, for each line: first step, last step, seconds per step, and True for the first line after a start.
    _first: int = 0  # the step at which the run began
    _intervals: dict[str, list[tuple[int, int, float, bool]]] = field(default_factory=dict)

    def seconds_per_step(self, name: str) -> float | None:
        """The mean time of a step of the loss `name`; None if none was logged.

        The first line after each start includes warming up: it is left out if there are others.
        """
        intervals = self._intervals.get(name, [])
        intervals = [each for each in intervals if not each[3]] or intervals
        steps = sum(last - first for first, last, *_ in intervals)
        return sum((last - first) * seconds for first, last, seconds, _ in intervals) / steps if steps else None

    def at_times(self, name: str, curve: Curve) -> Curve:
        """A curve of the loss `name` over the time of its own steps, in seconds; empty if no time was logged."""
        usual = self.seconds_per_step(name)
        if usual is None:
            return []
        ends, total = [(self._first, 0.0)], 0.0
        for first, last, seconds, _ in self._intervals[name]:
            # Steps that no line covers count with the mean.
            total += max(0, first - ends[-1][0]) * usual + (last - first) * seconds
            ends.append((last, total))
        found, at = [], 0
        for step, value in curve:
            while at + 2 < len(ends) and ends[at + 1][0] < step:
                at += 1
            (s0, t0), (s1, t1) = ends[at], ends[at + 1]
            found.append((t0 + (t1 - t0) * (step - s0) / (s1 - s0) if s1 > s0 else t1, value))
        return found

    def paces(self, variants: Mapping[str, Variant]) -> dict[str, Pace]:
        """The pace of each loss whose time was logged, by name."""
        seconds = {name: self.seconds_per_step(name) for name in variants}
        plain = {variants[name].loss: name for name in reversed(variants)}  # the first of that loss
        paces = {}
        for name, own in seconds.items():
            of_plain = seconds.get(plain.get(variants[name].loss.split("+")[0], ""))
            if own is not None:
                paces[name] = Pace(own, own / of_plain if of_plain else None)
        return paces


def read_history(run: Path) -> History:
    """Read a run's log.jsonl; an empty history if there is none. Raises OSError if it cannot be read."""
    history, started, before = History(), False, 0
    path = run / "log.jsonl"
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, LookupError, TypeError, RecursionError):
            history.damaged += 1
            continue
        history.steps = max(history.steps, step)
        if entry.keys() >= START:
            history._first = history._first if history.starts else step
            history.starts.append(entry)
            started, before = True, step
        for kind in ("note", "left_out"):
            if kind in entry:
                text = f"step {step}: {'left out: ' if kind == 'left_out' else ''}{entry[kind]}"
                history.notes += [text] if text not in history.notes else []
        if "validation" in entry:
            for metric, value in entry.items():
                _add(history.curves, metric, entry["validation"], step, value)
            history.metrics += [name for name in entry if name not in {*NOT_CURVES, *history.metrics}]
        elif isinstance(entry.get("loss"), dict):
            for quantity, values in entry.items():
                for name, value in values.items() if isinstance(values, dict) else [("", values)]:
                    _add(history.curves, quantity, name, step, value)
            times = entry.get("seconds_per_step")
            for name, seconds in times.items() if isinstance(times, dict) else ():
                if step > before and isinstance(seconds, (int, float)):
                    history._intervals.setdefault(name, []).append((before, step, float(seconds), started))
            started, before = False, step
    return history


def _add(curves: dict, quantity: str, name: str, step: int, value: object) -> None:
    """Add a point to a curve unless it is not a number; None, logged for a value not finite, becomes NaN."""
    if quantity not in NOT_CURVES and (value is None or isinstance(value, (int, float))):
        curves.setdefault(quantity, {}).setdefault(name, []).append((step, math.nan if value is None else value))


def read_paces(run: Path, config: Config) -> dict[str, Pace]:
    """The pace of each loss of a run whose time was logged, by name."""
    return read_history(run).paces(config.variants)
