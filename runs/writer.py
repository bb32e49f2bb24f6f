"""The files that a run writes while it trains; disk errors do not end the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import configs
from configs import Config

from .atomic import atomic_append, atomic_write, fsync_path
from .checkpoint import write_last
from .folder import checkpoint_stamp, make_run_dir
from .lock import RunFolderError, locked_run
from .log import log_line, trim_log


class RunWriter:
    """Writes a run's log and checkpoints; a full disk or an unwritable folder does not end the run.

    What cannot be written stays in memory, in order, until the next save. The error is reported once, and so is the
    save that succeeds after it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.log_lines = b""  # not yet in the log
        self.step = 0  # of the last line logged
        self.queued: dict[str, bytes] = {}  # by file name; last.pt comes after the best_*.pt that it refers to
        self.last_error: str | None = None
        self.notes: list[str] = []  # for the run's summary

    @contextmanager
    def acquired(self, config: Config, stamp: tuple[int, int] | None) -> Iterator[None]:
        """Make the run's folder and hold its lock. Raises RunFolderError if that fails or last.pt has changed.

        stamp: the `checkpoint_stamp` of the last.pt that the run resumes from; None for a new run.
        """
        try:
            if config.modelpath:
                self.folder.mkdir(parents=True, exist_ok=True)
            else:
                self.folder = make_run_dir(self.folder, config.model, config.scale)
        except OSError as error:
            reason = error.strerror or error
            raise RunFolderError(f"--modelpath {self.folder}: cannot be made ({reason}); name another") from None
        with locked_run(self.folder):
            if checkpoint_stamp(self.folder) != stamp:
                raise RunFolderError(f"--modelpath {self.folder}: another run has just resumed it; start again")
            yield

    def write_settings(self, config: Config, step: int, validated: bool) -> None:
        """Write config.yaml; drop log lines after `step`, in a new run all. Raises OSError."""
        settings = configs.absolute_paths(
            replace(config, load=False, checkpoint=None, auto_resume=False, modelpath=None)
        )
        atomic_write(self.folder / "config.yaml", configs.to_yaml(settings))
        trim_log(self.folder / "log.jsonl", step if config.load else -1, validated)

    def log(self, **entry) -> None:
        """Add one line of JSON to the log."""
        self.step = entry["step"]
        self.log_lines += log_line(entry)
        with self._report_errors():
            self._write_log()

    def queue(self, name: str, content: bytes) -> None:
        """Queue a file for the next save, replacing a queued one of the same name."""
        self.queued.pop(name, None)
        self.queued[name] = content

    def save(self) -> None:
        """Write the log and all queued files; the latter even if the log cannot be written."""
        with self._report_errors():
            self._write_log()
            if (self.folder / "log.jsonl").exists():
                fsync_path(self.folder / "log.jsonl")
        with self._report_errors():
            for name in [*self.queued]:
                if name == "last.pt":
                    write_last(self.folder, self.queued[name])
                else:
                    (self.folder / name).parent.mkdir(exist_ok=True)
                    atomic_write(self.folder / name, self.queued[name])
                del self.queued[name]
            if self.last_error and not self.unsaved:
                note, self.last_error = f"saved again after: {self.last_error}", None
                print(f"\n{note}", flush=True)
                self.log(step=self.step, note=note)

    @property
    def unsaved(self) -> str | None:
        """The files not yet written, and the error; None if all are written."""
        names = ["log.jsonl"] * bool(self.log_lines) + [*self.queued]
        return f"{', '.join(names)} ({self.last_error})" if names else None

    def _write_log(self) -> None:
        if self.log_lines:
            atomic_append(self.folder / "log.jsonl", self.log_lines)
            self.log_lines = b""

    @contextmanager
    def _report_errors(self) -> Iterator[None]:
        """Catch an OSError; print and remember it, unless one is remembered already."""
        try:
            yield
        except OSError as error:
            if not self.last_error:
                self.last_error = error.strerror or str(error)
                self.notes.append(f"a save failed: {self.last_error}")
                print(f"\nnot saved: {self.unsaved}; training continues, the next save tries again", flush=True)


class NullWriter(RunWriter):
    """The writer of all processes but the main one: it writes nothing."""

    @contextmanager
    def acquired(self, config: Config, stamp: tuple[int, int] | None) -> Iterator[None]:
        yield

    def write_settings(self, config: Config, step: int, validated: bool) -> None:
        pass

    def log(self, **entry) -> None:
        pass

    def queue(self, name: str, content: bytes) -> None:
        pass

    def save(self) -> None:
        pass
