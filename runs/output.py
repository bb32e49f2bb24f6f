"""stdout and stderr that never end a run: odd names are escaped, a full disk or a closed pipe is ignored."""

import io
import sys


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
