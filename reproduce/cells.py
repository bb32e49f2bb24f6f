"""A cell of a grid: one training by train.py in its own folder, and its evaluations by val.py.

The folder's files tell how far a cell is, so that any process can continue it. last.pt: train.py resumes it;
trained.txt (the command): the training is complete; test_best.json and test_last.json: it is evaluated. diverged.txt:
losses or scores were no longer finite; it is not trained again, for it would diverge again.
"""

import ctypes
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import configs
from configs import Config
from metrics.judges import word_of
from runs.atomic import atomic_append, atomic_write
from runs.evaluations import read_evaluations
from runs.lock import RunFolderError, check_unlocked
from training.evaluation import label_folders

ROOT = Path(__file__).parents[1]
TRAINED, DIVERGED, SECONDS = "trained.txt", "diverged.txt", "seconds.txt"
CHECKPOINTS = ("best", "last")  # networks of a training: at its best validation, and at its end
PATIENCE = 60  # seconds for a training to finish its step and save; Slurm gives submitit's jobs 90
# Settings that say where and how a run is done, not what it computes: cells may differ in them.
PLACEMENT = {
    "modelpath",
    "load",
    "checkpoint",
    "keep_every",
    "device",
    "workers",
    "judge_memory",
    "judge_weights",
    "extractor_weights",
    "log_every",
    "watch",
    "save_every",
    "save_minutes",
    "cache",
    "cache_size",
}


class Failed(Exception):
    """Raised if a cell cannot be completed; the message says why."""


def differing(one: Config, other: Config, besides: set[str] = frozenset()) -> list[str]:
    """The names of the settings in which two runs differ, apart from PLACEMENT and `besides`."""
    one, other = map(configs.absolute_paths, (one, other))
    names = [field.name for field in fields(Config) if field.name not in PLACEMENT | besides]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def saved_config(folder: Path) -> Config | None:
    """Read the settings of the run in folder; None if there is none. Raises ValueError."""
    path = folder / "config.yaml"
    return configs.from_mapping(configs.read_yaml(path), source=str(path)) if path.exists() else None


def read_evaluation(folder: Path, which: str) -> dict | None:
    """Read val.py's evaluation of the `best` or `last` network in folder, merged into one entry.

    Each of its `rows` has the data set's name, and a list per metric in `per_image`. None if the run is not trained or
    not evaluated, or the file is damaged.
    """
    try:
        entries = read_evaluations(folder / f"test_{which}.json") if (folder / TRAINED).exists() else []
        entries = [entry for entry in entries if entry["checkpoint"] == which]
        rows = [row | {"dataset": e["dataset"], "per_image": _by_metric(row)} for e in entries for row in e["rows"]]
        return entries[0] | {"rows": rows} if rows else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _by_metric(row: dict) -> dict[str, list]:
    images = list(row["per_image"].values())
    return {metric: [image[metric] for image in images] for metric in images[0]}


def read_log(folder: Path) -> list[dict]:
    """Read the lines of a run's log; none if there is no log."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def gave_up(folder: Path, code: int) -> bool:
    """True if a training that ended with this exit code diverged.

    Either its last validation was not finite, or train.py failed (exit code 1) and its last loss was not finite.
    """
    log = read_log(folder)
    losses = [value for entry in log if "loss" in entry for value in entry["loss"].values()]
    scores = [entry["PSNR-Y"] for entry in log if "validation" in entry]
    return scores[-1:] == [None] or (code == 1 and losses[-1:] == [None])


def in_a_file_name(text: str) -> str:
    """Replace characters that are special to shells and file systems: L1+TLW[wc=one] -> L1+TLW_wc=one."""
    return re.sub(r"[^\w.+=,-]+", "_", text).strip("_")


@dataclass(frozen=True, eq=False)  # hashed by identity: Config is not hashable
class Cell:
    """One training, of one network with one loss, and its evaluations.

    Args:
        config: its settings.
        words: the flags of train.py that give these settings.
        folders: the data sets to evaluate it on; without any it is only trained.
        bgr: give LPIPS the channels as BGR, as the authors do.
        label: the name to print in place of its loss.
    """

    config: Config
    words: tuple[str, ...]
    folders: tuple[str, ...] = ()
    bgr: bool = False
    label: str = ""

    def __str__(self):
        return f"{self.block} {self.label or self.loss} seed {self.config.seed}"

    @property
    def block(self) -> str:
        """The network and its scale, within which losses are compared."""
        return f"{self.network} x{self.config.scale}"

    @property
    def network(self) -> str:
        """The network's name with its options, as --models takes it."""
        return network_name(self.config)

    @property
    def loss(self) -> str:
        return self.config.losses[0]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.modelpath)

    def check(self) -> None:
        """Raise ValueError if the folder holds a run with other settings."""
        saved = saved_config(self.folder)
        for name in [] if saved is None else differing(self.config, saved):
            wanted, found = (getattr(config, name) for config in (self.config, saved))
            shown = " ".join(map(str, wanted)) if isinstance(wanted, tuple) else wanted
            raise ValueError(
                f"{configs.flag_of(name)} {shown}: {self.folder} was begun with {found}; take that, or another --out"
            )

    def evaluated(self, which: str) -> bool:
        """True if its `best` or `last` network is evaluated on all data sets, with its protocol and metrics."""
        found = read_evaluation(self.folder, which)
        if found is None or found.get("protocol") != self.config.protocol or found.get("precision", "fp32") != "fp32":
            return False
        names = label_folders(self.folders)
        rows = [row for row in found["rows"] if row["dataset"] in names]
        if not set(names) <= {row["dataset"] for row in rows}:
            return False
        metrics = set.intersection(*(set(row["per_image"]) for row in rows))
        orders = {name.endswith("-BGR") for name in metrics if name.startswith("LPIPS-")}
        return set(self.config.metrics) <= set(map(word_of, metrics)) and orders <= {self.bgr}

    def finished(self) -> bool:
        """True if nothing is left to do: it is trained and evaluated; without `folders`, trained or diverged."""
        if not self.folders:
            return any((self.folder / name).exists() for name in (TRAINED, DIVERGED))
        return (self.folder / TRAINED).exists() and all(map(self.evaluated, CHECKPOINTS))

    def seconds(self) -> float:
        """The seconds that train.py has taken so far, starting up and validating included."""
        path = self.folder / SECONDS
        return sum(map(float, path.read_text().split())) if path.exists() else 0.0

    def in_use(self) -> bool:
        """True if a training is running in the folder."""
        try:
            check_unlocked(self.folder)
        except RunFolderError:
            return True
        return False

    def next_command(self) -> list[str] | None:
        """The command to run next; None if the cell is finished."""
        config, folder = self.config, self.folder
        if self.finished():
            return None
        if (folder / TRAINED).exists():
            which = next(which for which in CHECKPOINTS if not self.evaluated(which))
            flags = ["--modelpath", str(folder), "--protocol", config.protocol, "--folder", *self.folders]
            flags += ["--out", str(folder / f"test_{which}.json"), *["--best"] * (which == "best")]
            flags += ["--metrics", *config.metrics] * bool(config.metrics)
            flags += ["--device", str(config.device)] * bool(config.device) + ["--bgr"] * self.bgr
            return [sys.executable, str(ROOT / "val.py"), *flags]
        begun = any((folder / name).exists() for name in ("last.pt", "previous.pt"))
        return [sys.executable, str(ROOT / "train.py"), *self.words, *["--load"] * begun]


def network_name(config: Config) -> str:
    """The network's name with its options in brackets: EDSR[blocks=8,channels=32]."""
    options = ",".join(f"{name}={value}".replace(" ", "") for name, value in (config.model_options or {}).items())
    return config.model + f"[{options}]" * bool(options)


def _with_the_parent() -> None:
    """Make a child process, before its exec, get SIGTERM if the parent dies, and ignore SIGUSR2."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to every process of a job whose time is over
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Work:
    """Runs the remaining commands of a cell, each in its own process. Call it once.

    submitit calls `checkpoint` before a job is preempted or its time is over.
    """

    def __init__(self, cell: Cell):
        self.cell = cell
        self.child: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Run all commands. Raises what progress does."""
        for _ in self.progress():
            time.sleep(0.1)

    def progress(self, asked: Callable[[], int | None] = lambda: None) -> Iterator[None]:
        """Run all commands, yielding repeatedly while one runs.

        asked: returns a signal's number if the work has to stop. Raises Failed if a command fails or is ended by a
        signal.
        """
        cell, before = self.cell, None
        while (command := cell.next_command()) is not None:
            program = Path(command[1]).name
            if (cell.folder / DIVERGED).exists():
                raise Failed("diverged; take a lower --learning-rate, --warmup or --clip-grad and another --out")
            if command == before:
                raise Failed(f"{program} did not leave what it should have")
            if program == "train.py" and "--load" not in command:
                for path in cell.folder.glob("best_*.pt"):  # without a last.pt they cannot be resumed from
                    path.unlink()
            began = time.monotonic()
            code = yield from self.run(command, asked)
            if program == "train.py" and cell.folder.exists():
                atomic_append(cell.folder / SECONDS, f"{time.monotonic() - began:.1f}\n".encode())
                if code in (0, 1) and gave_up(cell.folder, code):
                    atomic_write(cell.folder / DIVERGED, (shlex.join(command) + "\n").encode())
                    continue
            if code:
                raise Failed(f"{program}: {reason(code)}")
            if program == "train.py":
                atomic_write(cell.folder / TRAINED, (shlex.join(command) + "\n").encode())
            before = command

    def run(self, command: list[str], asked: Callable[[], int | None]) -> Iterator[None]:
        """Run a command and return its exit code; terminate it when `asked` says so, or when this ends."""
        self.child = subprocess.Popen(command, preexec_fn=_with_the_parent)
        try:
            told = False
            while self.child.poll() is None:
                if asked() and not told:
                    told = True
                    self.child.terminate()
                yield
            return self.child.returncode
        finally:
            self.stop()

    def stop(self) -> None:
        """Terminate the running command, which saves; kill it if it takes longer than PATIENCE."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.child.kill()

    def checkpoint(self):
        """Stop, with a save; return the same work, for submitit to queue again."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Work(self.cell))


def reason(code: int) -> str:
    """The meaning of an exit code of our commands or of Python's subprocess."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + ("; was the memory full?" if name == "SIGKILL" else "")
    if code > 128:
        return f"stopped by {signal.Signals(code - 128).name}, all saved"
    return {2: "bad input (exit code 2)"}.get(code, f"exit code {code}")
