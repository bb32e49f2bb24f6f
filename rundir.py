"""A run's folder: where it is, its log, and states that are saved whole or not at all.

    checkpoints/RUN/config.yaml     every setting
                    log.jsonl       a line every few steps and after each epoch
                    last.pt         all that is needed to go on
                    previous.pt     the last.pt before that
                    best_LOSS.pt    the networks of one loss at their best epoch
                    val.json        written by val.py
                    .lock           names the process that trains here, while it does

A state is the zip archive that torch.save writes; its CRC-32 of every entry is the checksum that loading verifies.
"""

import io
import json
import math
import os
import re
import sys
import zipfile
from pathlib import Path

import torch

import tensors

ROOT = Path("checkpoints")


def next_run(model: str, scale: int, root: Path = ROOT) -> Path:
    """The folder that a new run gets when none is named: ROOT/MODEL_xSCALE_NUMBER, the number not taken yet."""
    stem = f"{model}_x{scale}_"
    taken = [int(m[1]) for p in root.glob(stem + "*") if (m := re.fullmatch(re.escape(stem) + r"(\d+)", p.name))]
    return root / f"{stem}{max(taken, default=0) + 1:03d}"


def make_next(run: Path, model: str, scale: int) -> Path:
    """Make the folder `run`, a number of next_run's, or the next one that no other run has made in the meantime."""
    while True:
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            run = next_run(model, scale, run.parent)


def stamp(run: Path) -> tuple[int, int] | None:
    """What tells one last.pt in the folder from another; None where there is none."""
    try:
        stat = (run / "last.pt").stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def newest_run(root: Path = ROOT) -> Path:
    """The run that was last written to. Raises ValueError where there is none."""
    runs = [path.parent for name in ("last", "previous", "best_*") for path in root.glob(f"*/{name}.pt")]
    if not runs:
        raise ValueError(f"no run in {root.resolve()}; train one with train.py, or name a folder with --modelpath")
    return max(runs, key=lambda run: max(path.stat().st_mtime_ns for path in run.glob("*.pt")))


def packed(state: dict) -> bytes:
    """The file of a state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write content so that path holds, at any moment, the old content or the new, whole.

    The old one stays as `previous`, where that is given and the old one is not damaged. Raises OSError.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and intact(path):
            link = previous.with_name(previous.name + ".tmp")
            link.unlink(missing_ok=True)
            try:
                os.link(path, link)
                os.replace(link, previous)
            except OSError:  # a file system without hard links: for a moment there is `previous` alone
                os.replace(path, previous)
        os.replace(aside, path)
    except OSError as error:
        _try_to_remove(aside)  # what it takes of a full disk
        error.filename = str(path)  # of a full disk an error does not say for which file
        raise
    sync(path.parent)


def write_or_say(program: str, path: Path, content: bytes) -> bool:
    """Write content to path as write_whole does, and folders; say where that fails. Returns whether it is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        print(f"{program}: error: not written: {path} ({error.strerror or error}); make room, or write elsewhere",
              file=sys.stderr)  # fmt: skip
        return False
    return True


def _try_to_remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def save_state(state: dict, path: Path) -> None:
    """Write state to path so that path holds, at any moment, the old state or the new one, whole."""
    write_whole(path, packed(state))


def intact(path: Path) -> bool:
    """Whether path is a file with the right checksums."""
    try:
        tensors.verify(path)
        return zipfile.is_zipfile(path)
    except Exception:  # whatever zipfile makes of a damaged one
        return False


def load_state(path: Path) -> dict:
    """A state of tensors and plain values, on the CPU; raises what tensors.load does.

    Bits that are not as they were written are an error too.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    state = tensors.load(path, "a checkpoint of tensors")
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a checkpoint, found a {type(state).__name__}")
    return state


def load_last(run: Path) -> tuple[dict, Path, str | None]:
    """The state to go on from, its file, and what is wrong with last.pt where that is previous.pt (else None).

    Raises ValueError where neither can be read, or last.pt is out of reach: it may be whole and the later one.
    """
    last, previous = run / "last.pt", run / "previous.pt"
    try:
        return load_state(last), last, None
    except tensors.OutOfReach as error:
        raise ValueError(f"{error}; make it readable") from None
    except ValueError as error:
        if not previous.exists():
            raise
        wrong = str(error)
    try:
        return load_state(previous), previous, wrong
    except ValueError as error:
        raise ValueError(f"{wrong}; nor can the one before: {error}; begin anew in another folder") from None


def learner_states(state: dict, path: Path) -> dict[str, dict]:
    """The states by loss in the state of a last.pt, read from path. Raises ValueError where it is no such thing."""
    states = state.get("learners")
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise ValueError(f"{path}: expected a run's last.pt, with a state for each of its losses")
    return states


def check_new(run: Path, aborted: bool = False) -> None:
    """Raise ValueError where run cannot be the folder of a new run: there is one, or files are in the way.

    aborted: its settings and log are of a run that ended before it saved anything, and may be written over.
    """
    try:
        held = any(run.glob("*.pt"))
        others = [] if aborted else [name for name in ("config.yaml", "log.jsonl") if (run / name).exists()]
    except OSError as error:
        raise ValueError(f"--modelpath {run}: cannot be a folder ({error.strerror}); name another") from None
    if held:
        raise ValueError(f"--modelpath {run}: holds a run; add --load to go on with it, or name another")
    if others:
        remedy = "name another folder, or move it away"
        raise ValueError(f"--modelpath {run}: holds a {others[0]} that a run would write over; {remedy}")
    existing = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--modelpath {run}: {existing} is no folder that can be written to; name another")


def finite(value):
    """The same nested dicts, lists and numbers with None for what JSON does not know: NaN and the infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def trim_log(path: Path, step: int, validated: bool = True) -> None:
    """Drop what was logged after `step` (not validated: the scores of `step` too), for it will be logged again.

    A last line that was cut off goes with it, and so do lines that the log of a run does not have.
    """

    def stays(line: str) -> bool:
        try:
            entry = json.loads(line)
            return line.endswith("\n") and entry["step"] < step + (validated or "validation" not in entry)
        except (ValueError, LookupError, TypeError, RecursionError):
            return False

    if path.exists():
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        write_whole(path, "".join(filter(stays, lines)).encode())


def log_line(entry: dict) -> bytes:
    """A line of JSON for the log."""
    return (json.dumps(finite(entry)) + "\n").encode()


def append_whole(path: Path, content: bytes) -> None:
    """Add content to a file, all of it or nothing. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(content) < len(content):
                raise OSError("No space left on device")
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
