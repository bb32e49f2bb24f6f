"""A cell of a grid: one run of train.py in a folder of its own, and its evaluation by val.py in val.json there.

The folder tells how far a cell is, so that any process can go on with it: last.pt, train.py goes on from there;
trained.txt (the command), the training came to its end; val.json beside it, finished.
"""

import ctypes
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import configs
from configs import Config
from metrics.judges import word_of
from runs.atomic import atomic_write
from runs.evaluations import read_evaluations
from runs.lock import RunFolderError, check_unlocked
from training.evaluation import label_folders

ROOT = Path(__file__).parents[1]
TRAINED = "trained.txt"
PATIENCE = 60  # seconds that a training may take to finish its step and save; Slurm grants submitit's jobs 90
# Settings that say where and how a run is done, not what: cells may differ in them.
PLACEMENT = {
    "modelpath",
    "load",
    "device",
    "workers",
    "judge_memory",
    "judge_weights",
    "extractor_weights",
    "log_every",
    "save_every",
    "save_minutes",
}
KEYS = {"model", "scale", "seed"}  # what tells the cells of a grid from one another


class Failed(Exception):
    """A cell that did not come to its end; the message says why."""


def differing(one: Config, other: Config, besides: set[str] = frozenset()) -> list[str]:
    """The names of the settings in which two runs differ, where they run and those of `besides` left out."""
    names = [field.name for field in fields(Config) if field.name not in PLACEMENT | besides]
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def saved_config(folder: Path) -> Config | None:
    """The settings of the run in folder; None where there is none. Raises ValueError."""
    path = folder / "config.yaml"
    return configs.from_mapping(configs.read_yaml(path), source=str(path)) if path.exists() else None


def read_evaluation(folder: Path) -> dict | None:
    """What val.py wrote of the best networks of the trained run in folder under its protocol, as if of one entry.

    In `rows` the data set is named, and `per_image` holds the lists of each metric. None if missing or cut off.
    """
    try:
        config = saved_config(folder)
        entries = read_evaluations(folder / "val.json") if config and (folder / TRAINED).exists() else []
        wanted = ("best", config and config.protocol, "fp32")
        entries = [e for e in entries if (e["checkpoint"], e["protocol"], e.get("precision", "fp32")) == wanted]
        rows = [row | {"dataset": e["dataset"], "per_image": _by_metric(row)} for e in entries for row in e["rows"]]
        return entries[0] | {"rows": rows} if rows else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _by_metric(row: dict) -> dict[str, list]:
    images = list(row["per_image"].values())
    return {metric: [image[metric] for image in images] for metric in images[0]}


@dataclass(frozen=True, eq=False)  # a key of dicts, though Config is none
class Cell:
    """One training with its evaluation.

    config: its settings; words: the flags of train.py that give them; folders: the data sets of the evaluation (none:
    the settings' valpath); bgr: whether LPIPS sees them in the authors' channel order.
    """

    config: Config
    words: tuple[str, ...]
    folders: tuple[str, ...] = ()
    bgr: bool = False

    def __str__(self):
        return f"{self.config.model} x{self.config.scale} seed {self.config.seed}"

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return Path(self.config.modelpath)

    def check(self) -> None:
        """Raise ValueError where the folder holds a run of other settings."""
        saved = saved_config(self.folder)
        for name in [] if saved is None else differing(self.config, saved):
            wanted, found = (getattr(config, name) for config in (self.config, saved))
            shown = " ".join(map(str, wanted)) if isinstance(wanted, tuple) else wanted
            raise ValueError(
                f"{configs.flag_of(name)} {shown}: {self.folder} was begun with {found}; take that, or another --out"
            )

    def finished(self) -> bool:
        """Whether it is trained, and evaluated on all its data sets as it should be."""
        found = read_evaluation(self.folder)
        if found is None:
            return False
        names = label_folders(self.folders or self.config.valpath)
        rows = [row for row in found["rows"] if row["dataset"] in names]
        wanted = {(name, loss) for name in names for loss in ("bicubic", *self.config.variants)}
        if not wanted <= {(row["dataset"], row["loss"]) for row in rows}:
            return False
        metrics = set.intersection(*(set(row["per_image"]) for row in rows))
        orders = {name.endswith("-BGR") for name in metrics if name.startswith("LPIPS-")}
        return set(self.config.metrics) <= set(map(word_of, metrics)) and orders <= {self.bgr}

    def in_use(self) -> bool:
        """Whether a training is going on in the folder."""
        try:
            check_unlocked(self.folder)
        except RunFolderError:
            return True
        return False

    def next_command(self) -> list[str] | None:
        """What is to be run next; None where the cell is finished."""
        config, folder = self.config, self.folder
        if self.finished():
            return None
        if (folder / TRAINED).exists():
            flags = ["--modelpath", str(folder), "--best", "--protocol", config.protocol]
            flags += ["--folder", *self.folders] * bool(self.folders) + ["--lpips", *config.metrics] * bool(
                config.metrics
            )
            flags += ["--device", str(config.device)] * bool(config.device) + ["--bgr"] * self.bgr
            return [sys.executable, str(ROOT / "val.py"), *flags]
        begun = any((folder / name).exists() for name in ("last.pt", "previous.pt"))
        return [sys.executable, str(ROOT / "train.py"), *self.words, *["--load"] * begun]


def _with_the_parent() -> None:
    """In a child before its program: asked to stop when the parent dies, and deaf to the signal meant for that."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm tells every process of a job that its time is over
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Work:
    """Does what is left of a cell, each command in a process of its own; called once.

    submitit calls `checkpoint` before a job is moved or its time is over.
    """

    def __init__(self, cell: Cell):
        self.cell = cell
        self.child: subprocess.Popen | None = None

    def __call__(self, asked: Callable[[], int | None] = lambda: None) -> None:
        """Raises Failed where a command fails, or was ended by a signal. asked: says whether it shall stop."""
        cell, before = self.cell, None
        while (command := cell.next_command()) is not None:
            if command == before:
                raise Failed(f"{Path(command[1]).name} left no {TRAINED if 'train.py' in command[1] else 'val.json'}")
            if "train.py" in command[1] and "--load" not in command:
                for path in cell.folder.glob("best_*.pt"):  # without a last.pt nothing can go on from them
                    path.unlink()
            code = self.run(command, asked)
            if code:
                raise Failed(f"{Path(command[1]).name}: {reason(code)}")
            if "train.py" in command[1]:
                atomic_write(cell.folder / TRAINED, (shlex.join(command) + "\n").encode())
            before = command

    def run(self, command: list[str], asked: Callable[[], int | None]) -> int:
        """The exit code of a command, told to stop when `asked` says so, and never left behind."""
        self.child = subprocess.Popen(command, preexec_fn=_with_the_parent)
        try:
            told = False
            while self.child.poll() is None:
                if asked() and not told:
                    told = True
                    self.child.terminate()
                time.sleep(0.1)
            return self.child.returncode
        finally:
            self.stop()

    def stop(self) -> None:
        """End the command that is running, all saved."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.child.kill()

    def checkpoint(self):
        """Save, and say what shall be run when the job is started again: the same."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Work(self.cell))


def reason(code: int) -> str:
    """What an exit code of ours or of Python's subprocess means."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + ("; was the memory full?" if name == "SIGKILL" else "")
    if code > 128:
        return f"stopped by {signal.Signals(code - 128).name}, all saved"
    return {2: "bad input (exit code 2)"}.get(code, f"exit code {code}")
