"""The folder of a run: its files and its name.

checkpoints/RUN/config.yaml     every setting
                log.jsonl       a line every few steps and after each validation
                last.pt         all that is needed to resume
                previous.pt     the last.pt before that
                best_LOSS.pt    the networks of one loss at their best validation
                step_N.pt       the last.pt of step N, with --keep-every
                watch/          weights and SR crops at each validation, with --watch
                val.json        written by val.py
                report.html     written by report.py, and at the run's end
                weights.png     the weights at the run's end
                tensorboard/    with --tensorboard
                .lock           names the process that trains here now
"""

import os
import re
from pathlib import Path

CHECKPOINTS = Path("checkpoints")


def next_run_dir(model: str, scale: int, root: Path = CHECKPOINTS) -> Path:
    """The next free folder, ROOT/MODEL_xSCALE_NUMBER; for spandrel:FILE, MODEL is FILE's stem."""
    name = re.sub(r"[^\w.+-]", "_", Path(model).stem) if model.startswith("spandrel:") else model
    stem = f"{name}_x{scale}_"
    taken = [int(m[1]) for p in root.glob(stem + "*") if (m := re.fullmatch(re.escape(stem) + r"(\d+)", p.name))]
    return root / f"{stem}{max(taken, default=0) + 1:03d}"


def make_run_dir(run: Path, model: str, scale: int) -> Path:
    """Make the folder `run`, or the next free one if `run` exists by now; return it."""
    while True:
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            run = next_run_dir(model, scale, run.parent)


def checkpoint_stamp(run: Path) -> tuple[int, int] | None:
    """A stamp that tells one last.pt in the folder from another; None if there is none."""
    try:
        stat = (run / "last.pt").stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def newest_run_dir(root: Path = CHECKPOINTS, resumable: bool = False) -> Path:
    """The run that was written to last; resumable: only among those with a last.pt or previous.pt.

    Raises ValueError if there is none.
    """
    names = ("last", "previous") if resumable else ("last", "previous", "best_*")
    runs = [path.parent for name in names for path in root.glob(f"*/{name}.pt")]
    if not runs:
        raise ValueError(f"no run in {root.resolve()}; train one with train.py, or name a folder with --modelpath")
    return max(runs, key=lambda run: max(path.stat().st_mtime_ns for path in run.glob("*.pt")))


def check_new_run(run: Path, aborted: bool = False) -> None:
    """Raise ValueError if run cannot be a new run's folder: it holds a run's files, or is not writable.

    aborted: config.yaml and log.jsonl there are of a run that ended before its first save, and may be overwritten.
    """
    try:
        held = any(run.glob("*.pt"))
        others = [] if aborted else [name for name in ("config.yaml", "log.jsonl") if (run / name).exists()]
    except OSError as error:
        raise ValueError(f"--modelpath {run}: cannot be a folder ({error.strerror}); name another") from None
    if held:
        raise ValueError(f"--modelpath {run}: holds a run; add --load to resume it, or name another")
    if others:
        remedy = "name another folder, or move it away"
        raise ValueError(f"--modelpath {run}: holds a {others[0]} that a run would overwrite; {remedy}")
    existing = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--modelpath {run}: {existing} is not a writable folder; name another")
