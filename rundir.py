"""A run's folder: where it is, its log, and states that are saved whole or not at all.

    checkpoints/RUN/config.yaml     every setting
                    log.jsonl       a line every few steps and after each epoch
                    last.pt         all that is needed to go on
                    best_LOSS.pt    the networks of one loss at their best epoch
                    val.json        written by val.py
"""

import json
import math
import os
import re
from pathlib import Path

import torch

ROOT = Path("checkpoints")


def next_run(model: str, scale: int, root: Path = ROOT) -> Path:
    """The folder that a new run gets when none is named: ROOT/MODEL_xSCALE_NUMBER, the number not taken yet."""
    stem = f"{model}_x{scale}_"
    taken = [int(m[1]) for p in root.glob(stem + "*") if (m := re.fullmatch(re.escape(stem) + r"(\d+)", p.name))]
    return root / f"{stem}{max(taken, default=0) + 1:03d}"


def newest_run(root: Path = ROOT) -> Path:
    """The run that was last written to. Raises ValueError where there is none."""
    runs = [path.parent for path in root.glob("*/last.pt")] + [path.parent for path in root.glob("*/best_*.pt")]
    if not runs:
        raise ValueError(f"no run in {root.resolve()}; train one with train.py, or name a folder with --modelpath")
    return max(runs, key=lambda run: max(path.stat().st_mtime_ns for path in run.glob("*.pt")))


def save_state(state: dict, path: Path) -> None:
    """Write state to path so that path holds, at any moment, the old state or the new one, whole."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def load_state(path: Path) -> dict:
    """A state of tensors and plain values, on the CPU; code in the file is never run. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the unpickler raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a checkpoint of tensors ({reason})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a checkpoint, found a {type(state).__name__}")
    return state


def learner_states(state: dict, path: Path) -> dict[str, dict]:
    """The states by loss in the state of a last.pt, read from path. Raises ValueError where it is no such thing."""
    states = state.get("learners")
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise ValueError(f"{path}: expected a run's last.pt, with a state for each of its losses")
    return states


def check_new(run: Path) -> None:
    """Raise ValueError where run cannot be the folder of a new run: there is one, or a file is in the way."""
    if any(run.glob("*.pt")):
        raise ValueError(f"--modelpath {run}: holds a run; add --load to go on with it, or name another")
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


def trim_log(path: Path, step: int) -> None:
    """Drop what was logged after `step`: a run goes on from there and will log it again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        path.write_text("".join(kept))


def append_log(path: Path, **entry) -> None:
    """Add one line of JSON to the log."""
    with open(path, "a") as file:
        file.write(json.dumps(finite(entry)) + "\n")
