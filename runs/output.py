"""Commands to print for the user, and output streams whose errors never end a run."""

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
    """Make stdout and stderr escape characters that they cannot encode, as in odd file names."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def ignore_output_errors() -> None:
    """Make stdout and stderr drop what a full disk or a closed pipe does not take.

    They also escape what they cannot encode, as after escape_unencodable_output.
    """
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        old.flush()
        raw = _IgnoreErrors(old.fileno(), "w", closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, old.encoding, "backslashreplace", write_through=True))


def script_command(script: str, *words, launcher: str = "python") -> str:
    """The command line that runs a script of the project from the present working folder."""
    path = script if os.path.realpath(script) == str(ROOT / script) else str(ROOT / script)
    return f"{launcher} {shlex.join([path, *map(str, words)])}"
