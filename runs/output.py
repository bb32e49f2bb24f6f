"""What is printed: commands that work, and streams that no odd name, full disk or closed pipe ends a run by."""

import io
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class _IgnoreErrors(io.FileIO):
    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def escape_unencodable_output() -> None:
    """From now on stdout and stderr spell out what they have no letters for, as in file names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def ignore_output_errors() -> None:
    """From now on what stdout and stderr cannot take, on a full disk or a closed pipe, is lost and no error.

    Odd names are spelled out as by escape_unencodable_output.
    """
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        old.flush()
        raw = _IgnoreErrors(old.fileno(), "w", closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, old.encoding, "backslashreplace", write_through=True))


def script_command(script: str, *words, launcher: str = "python") -> str:
    """The command line that runs a script of the project, such as train.py, from the present working folder."""
    path = script if os.path.realpath(script) == str(ROOT / script) else str(ROOT / script)
    return f"{launcher} {shlex.join([path, *map(str, words)])}"
