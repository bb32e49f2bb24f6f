"""The report on runs: one self-contained HTML page, made from the runs' files."""

import dataclasses
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment

import configs
from configs import Config
from metrics.evaluate import HIGHER_IS_BETTER
from metrics.judges import mark_biased, word_of
from runs.atomic import atomic_write
from runs.checkpoint import read_settings
from runs.evaluations import read_evaluations
from runs.history import Curve, History, Pace, read_history
from runs.output import script_command

from .curves import draw, legend
from .reporter import missing_controls
from .rows import untested
from .samples import Sample, data_uri, make_samples, merged, png_uri, read_watched

TEMPLATE = Path(__file__).with_name("page.html")
IMAGES = 3  # to upscale if --watch kept none
MAPS_OF = 4  # images whose weight maps are shown
SCHEDULED = {"k", "learning rate"}  # quantities that are set, not measured
PER_ROW = {"loss", "files", "note", "infinite", "per_image", "seconds_per_step", "times_plain"}


class Run:
    """A run, read from its files.

    Raises ValueError if its settings or scores cannot be read, OSError if its log cannot.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        try:
            self.config: Config = read_settings(path)
        except ValueError as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path / 'config.yaml'}: {error}") from None
        self.history: History = read_history(path)
        self.evaluations = read_evaluations(path / "val.json")
        self.paces = self.history.paces(self.config.variants)
        self.notes = list(self.history.notes)
        if self.history.damaged:
            self.notes.append(f"{self.history.damaged} lines of log.jsonl could not be read")

    @property
    def about(self) -> str:
        """One sentence: network, losses, steps, batch size and seed."""
        config, steps = self.config, self.history.steps
        options = " ".join(f"{name}={value}" for name, value in (config.model_options or {}).items())
        network = f"{config.model}{f' ({options})' if options else ''} x{config.scale}"
        of = f"{steps} steps" if steps else "no logged step"
        losses, batch = ", ".join(config.variants), config.images_per_step
        return f"{network} with {losses}: {of} of batch {batch}, seed {config.seed}."

    @property
    def starts(self) -> list[str]:
        """The commands that started and resumed the run; if none is logged, one that repeats it."""
        commands = [
            f"# {start['started']}, at step {start['step']}\ncd {shlex.quote(start['folder'])}\n{start['command']}"
            for start in self.history.starts
            if start.get("command")
        ]
        return commands or [script_command("train.py", "--config", self.path / "config.yaml")]

    @property
    def facts(self) -> dict[str, str]:
        """The images, versions, machine and settings that the result depends on, as text."""
        start, config = (self.history.starts or [{}])[-1], self.config
        facts = {"folder": str(self.path)}
        for kind, paths in (("training", config.trainpath), ("validation", config.valpath)):
            known = start.get("images", {}).get(kind)
            about = f"{known['count']} images, checksum {known['checksum']}: " if known else ""
            facts[f"{kind} images"] = about + " ".join(paths)
        if start:
            facts["versions"] = ", ".join(f"{name} {text}" for name, text in start["versions"].items())
            count = f", {start['processes']} processes" * (start["processes"] > 1)
            facts["machine"] = f"{start['device']}{count}"
        plain = Config()
        changed = {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if getattr(config, field.name) != getattr(plain, field.name)
        }
        words = {
            name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in changed.items()
        }
        facts["settings that are not the defaults"] = ", ".join(f"{name}={value}" for name, value in words.items())
        return facts

    @property
    def settings(self) -> str:
        """The content of config.yaml."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    def tables(self) -> list[dict]:
        """The table of each loss's last validation and time, then those of val.json."""
        return [*filter(None, [self._training_table()]), *map(self._evaluation_table, self.evaluations)]

    def _training_table(self) -> dict | None:
        curves, names = self.history.curves, list(self.config.variants)
        metrics = self.history.metrics
        rows = []
        for name in names:
            scores = [curves[metric].get(name) for metric in metrics]
            points = curves.get("loss", {}).get(name, [])
            times = self.history.at_times(name, points[-1:])
            taken = f"{times[-1][0]:.0f} s" if times else ""
            shown = [f"{curve[-1][1]:.4f}" if curve else "" for curve in scores]
            rows.append([name, str(points[-1][0]) if points else "", *shown, str(self.paces.get(name, "")), taken])
        if not any(any(row[1:]) for row in rows):
            return None
        headers = ["loss", "steps", *metrics, "s/step (x plain)", "all its steps"]
        return {
            "title": "In training: the last validation, and the time",
            "headers": headers,
            "rows": rows,
            "notes": False,
        }

    def _evaluation_table(self, entry: dict) -> dict:
        rows = entry["rows"]
        names = list(dict.fromkeys(name for row in rows for name in row if name not in PER_ROW))
        judges = entry.get("judge", "").split()
        timed, noted = any("seconds_per_step" in row for row in rows), any(row.get("note") for row in rows)
        lines = []
        for row in rows:
            values = [f"{row[name]:.4f}" if row.get(name) is not None else "" for name in names]
            seconds = row.get("seconds_per_step")
            pace = str(Pace(seconds, row.get("times_plain"))) if seconds is not None else ""
            lines.append([row["loss"], *values, *([pace] * timed), *([row.get("note", "")] * noted)])
        about = [f"{entry.get('dataset', '')} ({rows[0].get('files', '?')} images)", f"protocol {entry['protocol']}"]
        about += [entry["checkpoint"]] * bool(entry["checkpoint"]) + ["bf16"] * (entry.get("precision") == "bf16")
        headers = ["method", *(mark_biased(name, judges) for name in names)]
        headers += ["s/step (x plain)"] * timed + ["note"] * noted
        return {"title": ", ".join(about), "headers": headers, "rows": lines, "notes": noted}

    def samples(self, count: int, device: torch.device, validation=None) -> list[Sample]:
        """Crops of validation images; an error becomes a note, with no crops."""
        try:
            return read_watched(self.path) or make_samples(self.path, count, device, validation)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            self.notes.append(f"no images: {configs.one_line(str(error), 300) or type(error).__name__}")
            return []


def write_report(
    runs: Sequence[Path], out: Path, *, images: int = IMAGES, device: torch.device | str = "cpu", validation=None
) -> None:
    """Write the page on these runs to out.

    images: how many to upscale if --watch kept none; validation: the run's validation images, if already loaded.
    Raises ValueError for a folder that is no run, OSError if a file cannot be read or written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, render(runs, images, torch.device(device), validation).encode(errors="backslashreplace"))


def report_or_note(run: Path, device: torch.device, validation) -> None:
    """Write a run's report and print its path; print a note instead of raising an error."""
    path = run / "report.html"
    try:
        write_report([run], path, device=device, validation=validation)
        print(f"report: {path}")
    except Exception as error:
        print(f"note: {path} was not written ({configs.one_line(str(error)) or type(error).__name__})")


def render(paths: Sequence[Path], images: int, device: torch.device, validation=None) -> str:
    """The page as HTML. Raises ValueError and OSError as write_report does."""
    names = [path.resolve().name for path in paths]
    runs = [Run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names)]
    samples = [(run.name, sample) for run in runs for sample in run.samples(images, device, validation)]
    shown = merged(samples) if len(runs) > 1 else [sample for _, sample in samples]
    notes = [] if shown else ["No images: see the notes below."]
    drawn = {run.name: run.path / "weights.png" for run in runs if (run.path / "weights.png").exists()}
    if not any(sample.weights for sample in shown) and drawn:
        notes.append("To see the weights over the epochs, train with --watch 2.")
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return page.render(
        title=f"{', '.join(names)}: report" if len(names) < 4 else f"Report on {len(names)} runs",
        made=time.strftime("Made on %Y-%m-%d %H:%M."),
        runs=[
            {
                **{name: getattr(run, name) for name in ("name", "about", "starts", "facts", "settings", "notes")},
                "tables": run.tables(),
                "verdicts": [*filter(None, [untested(run.config.variants)]), *missing_controls(run.config)],
            }
            for run in runs
        ],
        samples=[
            {"name": s.name, "about": s.about, "images": {name: data_uri(image) for name, image in s.images.items()}}
            for s in shown
        ],
        image_notes=notes,
        maps=weight_maps(shown),
        pictures=[{"title": name, "source": png_uri(path.read_bytes())} for name, path in drawn.items()],
        **panels_of(runs),
    )


def weight_maps(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The weight maps over the epochs, coloured by matplotlib's inferno."""
    if not any(sample.weights for sample in samples):
        return []
    from matplotlib import colormaps  # here, because it takes a second

    palette = (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes()
    return [
        {
            "title": f"{sample.name}, {loss}",
            "images": [{"label": label, "source": data_uri(levels, palette)} for label, levels in maps],
        }
        for sample in samples[:MAPS_OF]
        for loss, maps in sample.weights.items()
    ]


def panels_of(runs: Sequence[Run]) -> dict[str, list]:
    """The curves of each quantity, over steps and over time, and their legend."""
    several = len(runs) > 1
    labels = [f"{run.name}: {name}" if several else name for run in runs for name in run.config.variants]
    series = [(run, name) for run in runs for name in run.config.variants]
    found: dict[str, dict[int, Curve]] = {}
    for number, (run, name) in enumerate(series):
        curves = dict(run.history.curves)
        shared, own = curves.pop("learning_rate", {}).get("", []), curves.pop("own_learning_rate", {}).get(name, [])
        curves["learning rate"] = {name: sorted({**dict(shared), **dict(own)}.items())}
        for quantity, by_name in curves.items():
            if any(math.isfinite(value) for _, value in by_name.get(name, [])):
                found.setdefault(quantity, {})[number] = by_name[name]
    scores = {metric for run in runs for metric in run.history.metrics}
    order = sorted(found, key=lambda quantity: (quantity != "loss", quantity not in scores))
    panels = []
    for quantity in order:
        over_time = {i: series[i][0].history.at_times(series[i][1], curve) for i, curve in found[quantity].items()}
        over_time = {i: curve for i, curve in over_time.items() if curve}
        better = "higher" if word_of(quantity) in HIGHER_IS_BETTER else "lower"
        panels.append(
            {
                "title": f"{quantity} ({better} is better)" if quantity in scores else quantity,
                "steps": draw(found[quantity], over_time=False, noisy=quantity not in SCHEDULED),
                "time": draw(over_time, over_time=True, noisy=quantity not in SCHEDULED) if over_time else "",
            }
        )
    return {"panels": panels, "legend": legend(labels)}
