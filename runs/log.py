"""The file log.jsonl: a line of JSON every few steps and after each validation.

training/reporter.py makes the lines: `losses` every --log-every steps, `scores` after a validation, `log_start` at a
start. runs/history.py reads the file. docs/training.md lists the fields.
"""

import json
import math
from pathlib import Path

from .atomic import atomic_write


def json_safe(value):
    """Copy nested dicts and lists, with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def trim_log(path: Path, step: int, validated: bool = True) -> None:
    """Drop the lines logged after `step`: a run that resumes there will log them again.

    validated: False drops the scores of `step` too. A cut-off last line and lines without a step are dropped as well.
    """

    def stays(line: str) -> bool:
        try:
            entry = json.loads(line)
            return line.endswith("\n") and entry["step"] < step + (validated or "validation" not in entry)
        except (ValueError, LookupError, TypeError, RecursionError):
            return False

    if path.exists():
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        atomic_write(path, "".join(filter(stays, lines)).encode())


def log_line(entry: dict) -> bytes:
    """A line of JSON for the log."""
    return (json.dumps(json_safe(entry)) + "\n").encode()
