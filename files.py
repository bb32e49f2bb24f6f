"""What a run writes while it trains, whatever happens to its disk."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rundir


class _Unheeded(io.FileIO):
    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def spell_odd_names() -> None:
    """From now on stdout and stderr spell out what they have no letters for, as in file names that are not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def talk_to_nobody_if_need_be() -> None:
    """From now on what stdout and stderr cannot take, on a full disk or a closed pipe, is lost and no error.

    Odd names are spelled out as by spell_odd_names.
    """
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        old.flush()
        raw = _Unheeded(old.fileno(), "w", closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, old.encoding, "backslashreplace", write_through=True))


class Files:
    """What a run writes while it trains. A full disk or a folder that cannot be written to does not end it.

    What could not be written waits in memory, in order, for the next save; said once, and again when it is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.lines = b""  # of the log
        self.step = 0  # of its last line
        self.states: dict[str, bytes] = {}  # by file name; last.pt comes after the best that it knows of
        self.trouble: str | None = None
        self.notes: list[str] = []  # what the run's summary shall say

    def log(self, **entry) -> None:
        """Add one line of JSON to the log."""
        self.step = entry["step"]
        self.lines += rundir.log_line(entry)
        with self._patience():
            self._write_log()

    def put(self, name: str, content: bytes) -> None:
        """Have a state written at the next save, instead of one of that name that still waits."""
        self.states.pop(name, None)
        self.states[name] = content

    def save(self) -> None:
        """Write all that waits; the states even where the log cannot be written."""
        with self._patience():
            self._write_log()
            if (self.folder / "log.jsonl").exists():
                rundir.sync(self.folder / "log.jsonl")
        with self._patience():
            for name in [*self.states]:
                previous = self.folder / "previous.pt" if name == "last.pt" else None
                rundir.write_whole(self.folder / name, self.states[name], previous)
                del self.states[name]
            if self.trouble and not self.unsaved:
                note, self.trouble = f"saved again after: {self.trouble}", None
                print(f"\n{note}", flush=True)
                self.log(step=self.step, note=note)

    @property
    def unsaved(self) -> str | None:
        """What is not in the folder and why; None where all is."""
        names = ["log.jsonl"] * bool(self.lines) + [*self.states]
        return f"{', '.join(names)} ({self.trouble})" if names else None

    def _write_log(self) -> None:
        if self.lines:
            rundir.append_whole(self.folder / "log.jsonl", self.lines)
            self.lines = b""

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """An OSError is said and remembered."""
        try:
            yield
        except OSError as error:
            if not self.trouble:
                self.trouble = error.strerror or str(error)
                self.notes.append(f"a save failed: {self.trouble}")
                print(f"\nnot saved: {self.unsaved}; training goes on, the next save tries again", flush=True)


class NoFiles(Files):
    """The files of a process that leaves writing to another."""

    def log(self, **entry) -> None:
        pass

    def put(self, name: str, content: bytes) -> None:
        pass

    def save(self) -> None:
        pass
