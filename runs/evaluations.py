"""val.json: a run's scores, one entry per protocol, data set, checkpoint and precision.

    {"evaluations": [{"protocol": "paper", "dataset": "Set5", "folder": "/data/Set5", "checkpoint": "best", ...,
                      "rows": [{"loss": "L1", "files": 5, "PSNR-Y": 30.1, ..., "note": "",
                                "per_image": {"baby.png": {"PSNR-Y": 33.2, ...}, ...}}, ...]}, ...]}

A score that is not finite is null, such as the PSNR of equal images. A CSV file beside it has the means.
"""

import csv
import io
import json
import os
from contextlib import contextmanager
from pathlib import Path

from .atomic import write_or_report
from .log import json_safe

KEY = (
    "protocol",
    "folder",
    "lr_folder",
    "checkpoint",
    "precision",
)  # a new entry replaces an old one with the same key


def read_evaluations(path: Path) -> list[dict]:
    """Read the entries of a val.json; none if there is no file. Raises ValueError if it is something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    try:
        entries = json.loads(text)["evaluations"]
        if all(entry["rows"] and entry["checkpoint"] is not None for entry in entries):
            return entries
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path}: not a file of val.py, or damaged; remove it, or write elsewhere with --out")


def write_evaluations(path: Path, entries: list[dict]) -> bool:
    """Add entries to a val.json, replacing those of the same KEY; write all means to a CSV beside it.

    A file at path that is no val.json is overwritten. Returns True if both files are written; else prints an error. If
    two processes write at the same time, the entries of both are kept.
    """
    with _locked(path):
        try:
            before = read_evaluations(path)
        except (OSError, ValueError):
            before = []
        new = [_key(entry) for entry in entries]
        entries = [entry for entry in before if _key(entry) not in new] + json_safe(entries)
        contents = {
            path: json.dumps({"evaluations": entries}, indent=1) + "\n",
            path.with_suffix(".csv"): _csv(entries),
        }
        encoded = {file: content.encode(errors="backslashreplace") for file, content in contents.items()}
        return all([write_or_report("val.py", file, content) for file, content in encoded.items()])


def _key(entry: dict) -> tuple:
    return tuple(entry.get(name) for name in KEY)


def _csv(entries: list[dict]) -> str:
    rows = [
        {name: value for name, value in entry.items() if isinstance(value, (str, int))}
        | {name: value for name, value in row.items() if name not in ("per_image", "infinite")}
        for entry in entries
        for row in entry["rows"]
    ]
    names = dict.fromkeys(name for row in rows for name in row if name != "note")
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, [*names, "note"], restval="")
    writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()


@contextmanager
def _locked(path: Path):
    """Hold a lock on path's folder, if the system and the file system have locks."""
    try:
        import fcntl  # not on Windows

        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(folder)
