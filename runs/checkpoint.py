"""Checkpoints: save them, load them, and check all of their content before any of it is used.

A checkpoint is the zip archive that torch.save writes. Loading verifies the archive's CRC-32 of every entry and runs no
code from the file (metrics/tensor_file.py). The check_* functions check the content before any of it is loaded
(`check_state_dict` in training/state.py and training/learner.py): fused Adam reads out of bounds when a moment has the
wrong shape.
"""

import io
import math
import os
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

import configs
from metrics.tensor_file import FileAccessError, load_tensor_file, verify_checksums
from models import build_network, model_id

from .atomic import atomic_write
from .output import script_command

# The key of the SR network's state dict. spandrel, whose networks take images in [0,1], does not know it.
SR_NETWORK = "sr_network"


def serialize(state: dict) -> bytes:
    """The content of the checkpoint file of a state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def is_valid_checkpoint(path: Path) -> bool:
    """True if path is a zip archive whose checksums are right."""
    try:
        verify_checksums(path)
        return zipfile.is_zipfile(path)
    except Exception:  # zipfile raises many types for a damaged file
        return False


def save_checkpoint(state: dict, path: Path) -> None:
    """Write state to path, which holds the old state or the new one at any moment."""
    atomic_write(path, serialize(state))


def write_last(folder: Path, content: bytes) -> None:
    """Write a run's last.pt; keep the old one as previous.pt unless it is damaged. Raises OSError."""
    last, previous = folder / "last.pt", folder / "previous.pt"

    def keep_previous() -> None:
        if not is_valid_checkpoint(last):
            return
        link = previous.with_name(previous.name + ".tmp")
        link.unlink(missing_ok=True)
        try:
            os.link(last, link)
            os.replace(link, previous)
        except OSError:  # no hard links here: for a moment there is only previous.pt
            os.replace(last, previous)

    atomic_write(last, content, before_replace=keep_previous)


def load_checkpoint(path: Path) -> dict:
    """Load a state of tensors and plain values onto the CPU.

    Raises ValueError if the file is missing or damaged, FileAccessError if it cannot be read at the moment.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    state = load_tensor_file(path, "a checkpoint of tensors")
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a checkpoint, found a {type(state).__name__}")
    return state


def load_last(run: Path) -> tuple[dict, Path, str | None]:
    """Load the state to resume from, with its file and the error of last.pt, or None.

    The file is last.pt, or previous.pt if last.pt is damaged. Raises ValueError if neither can be loaded, or if
    last.pt cannot be read at the moment: it may be intact, and is the later one.
    """
    last, previous = run / "last.pt", run / "previous.pt"
    try:
        return load_checkpoint(last), last, None
    except FileAccessError as error:
        raise ValueError(f"{error}; make it readable") from None
    except ValueError as error:
        if not previous.exists():
            raise
        wrong = str(error)
    try:
        return load_checkpoint(previous), previous, wrong
    except ValueError as error:
        raise ValueError(f"{wrong}; nor can the previous one: {error}; start again in another folder") from None


def load_kept(run: Path, name: str) -> tuple[dict, Path]:
    """Load a run's checkpoint by name, such as step_1000; return its state and file. Raises ValueError."""
    path = run / f"{name.removesuffix('.pt')}.pt"
    kept = sorted((path.stem for path in run.glob("step_*.pt")), key=lambda stem: (len(stem), stem))
    known = path.stem in [*kept, "last", "previous"]
    expected = f"one of {', '.join(kept)}" if kept else f"last, for {run} keeps no other; see --keep-every"
    configs.expect(known, "checkpoint", name, expected)
    return load_checkpoint(path), path


def learner_states(state: dict, path: Path) -> dict[str, dict]:
    """The learners' states by loss in a last.pt's state, read from path. Raises ValueError if missing."""
    states = state.get("learners")
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise ValueError(f"{path}: expected a run's last.pt, with a state for each of its losses")
    return states


def expect(fits: bool, source: str, what: str) -> None:
    """Raise ValueError unless `fits`; what: the wrong part of the state in the file `source`."""
    if not fits:
        raise ValueError(f"{source}: not a state of this run ({what})")


def is_state(value: object) -> bool:
    """True if value is a dict of tensors by name."""
    return isinstance(value, dict) and all(isinstance(x, Tensor) and isinstance(n, str) for n, x in value.items())


def is_count(value: object) -> bool:
    """True if value is a whole number of at least 0 that fits into 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def kind(value: object) -> tuple | None:
    """The shape and dtype of a tensor; None for any other value."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def _described(value: object) -> str:
    """A tensor's shape, and its dtype if not float32; of other values the type."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    shape = "x".join(map(str, value.shape)) or "a scalar"
    return shape if value.dtype == torch.float32 else f"{shape} of {str(value.dtype).removeprefix('torch.')}"


def check_weights(module: nn.Module, weights: object, source: str, wanted: str) -> None:
    """Raise ValueError unless weights is a state dict with exactly the module's names, shapes and dtypes.

    wanted: what the module is, for the error.
    """
    own = module.state_dict()
    found = weights if isinstance(weights, dict) else {}
    wrong = [name for name in own if name in found and kind(found[name]) != kind(own[name])]
    described = [f"{name} is {_described(found[name])}, expected {_described(own[name])}" for name in wrong]
    described += [f"{name} ({_described(own[name])}) is missing" for name in own if name not in found]
    described += [f"{name} ({_described(found[name])}) is not expected" for name in found if name not in own]
    if described:
        count = f"{len(described)} entries do not fit: "
        more = f"; and {len(described) - 3} more" if len(described) > 3 else ""
        raise ValueError(f"{source}: not a checkpoint of {wanted} ({count}{'; '.join(described[:3])}{more})")
    _check_extra_states(module, found, source, wanted)


def _check_extra_states(module: nn.Module, weights: dict, source: str, wanted: str) -> None:
    """Raise ValueError if a submodule's set_extra_state refuses its extra state; change nothing."""
    own = module.state_dict()
    for path, part in module.named_modules():
        name = f"{path}._extra_state".removeprefix(".")
        if name in own:
            before = part.get_extra_state()
            try:
                part.set_extra_state(weights[name])
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{source}: not a checkpoint of {wanted} ({name}: {error})") from None
            finally:
                part.set_extra_state(before)


def check_adam_state(opt: torch.optim.Adam, saved: object, source: str) -> None:
    """Raise ValueError unless saved has Adam's moments for opt's parameters, with their shapes and dtypes."""
    found = saved.get("state") if isinstance(saved, dict) else None
    expect(isinstance(found, dict), source, "an optimizer without moments")
    parameters = [p for group in opt.param_groups for p in group["params"]]
    for number, entry in found.items():
        expect(is_count(number) and number < len(parameters), source, f"moments of a parameter {number!r}")
        expect(
            isinstance(entry, dict) and entry.keys() == {"step", "exp_avg", "exp_avg_sq"},
            source,
            f"other moments than Adam's of parameter {number}",
        )
        fits = all(kind(entry[name]) == kind(parameters[number]) for name in ("exp_avg", "exp_avg_sq"))
        expect(fits and kind(entry["step"]) == ((), torch.float32), source, f"moments of parameter {number}")


def adam_state(opt: torch.optim.Adam, saved: dict) -> dict:
    """A state dict for opt with the moments of a saved one and opt's own settings.

    saved: has passed `check_adam_state`. Moments get the strides of their parameters: fused Adam ignores a moment's
    strides, and would write out of bounds if one was saved as an expanded scalar.
    """
    parameters = [p for group in opt.param_groups for p in group["params"]]
    moments = {
        number: {
            "step": entry["step"].clone(),
            **{name: torch.empty_like(parameters[number]).copy_(entry[name]) for name in ("exp_avg", "exp_avg_sq")},
        }
        for number, entry in saved["state"].items()
    }
    return {"state": moments, "param_groups": opt.state_dict()["param_groups"]}


def check_rng_states(saved: object, needed: dict[str, Tensor], source: str) -> None:
    """Raise ValueError unless saved has a state for the CPU and all its states that are needed are valid."""
    expect(isinstance(saved, dict) and "cpu" in saved, source, "no stream of random numbers")
    for device in saved.keys() & needed.keys():
        try:
            torch.Generator(device).set_state(saved[device])
        except (RuntimeError, TypeError):
            expect(False, source, f"the stream of random numbers of {device}")


def check_counts(state: dict, source: str) -> None:
    """Raise ValueError unless a learner's best score and counts of skipped steps are valid."""
    best, skips = state["best"], state["skips"]
    expect(isinstance(best, float) and not math.isnan(best), source, f"the best score {best!r}")
    expect(isinstance(skips, list) and len(skips) == 2 and all(map(is_count, skips)), source, "counts of skipped steps")


def check_average(learning: object, source: str) -> None:
    """Raise ValueError unless `learning` is None, or a network and the number of steps averaged."""
    fits = learning is None or isinstance(learning, dict) and learning.keys() == {"network", "averaged"}
    expect(fits and (learning is None or is_count(learning["averaged"])), source, "what its average is of")


def check_progress(state: dict, source: str) -> None:
    """Raise ValueError unless a last.pt's step, validated, images and selection_criterion are valid."""
    expect(is_count(state["step"]), source, f"step {state['step']!r}")
    expect(isinstance(state["validated"], bool), source, "whether it is validated")
    images = state["images"]
    expect(isinstance(images, list) and all(map(is_count, images)), source, "its images' checksums")
    names = state["selection_criterion"]
    expect(isinstance(names, list) and all(isinstance(name, str) for name in names), source, "what best is measured by")


def check_sr_network(net: nn.Module, state: dict, source: str, wanted: str) -> None:
    """Raise ValueError unless state[SR_NETWORK] fits net: model_id, names, shapes and dtypes.

    source: the state's file; wanted: net's model_id.
    """
    if state.get("model_id") != wanted:
        raise ValueError(f"{source}: a checkpoint of {state.get('model_id')}; expected one of {wanted}")
    check_weights(net, state.get(SR_NETWORK), source, wanted)


def load_network(net: nn.Module, state: dict, source: str, wanted: str) -> None:
    """Load state[SR_NETWORK] into net after `check_sr_network`. Raises ValueError, with net unchanged."""
    check_sr_network(net, state, source, wanted)
    net.load_state_dict(state[SR_NETWORK])


def read_settings(run: Path) -> configs.Config:
    """Read the settings of a run. Raises ValueError if the folder holds no run."""
    if not (run / "config.yaml").is_file():
        released = sorted(run.glob("SRModel_*.pth"))
        convert = f"convert the released files with: {script_command('convert.py', run)}"
        remedy = convert if released else "expected a run's folder"
        raise ValueError(f"--modelpath {run}: no config.yaml there; {remedy}")
    return configs.from_mapping(configs.read_yaml(run / "config.yaml"), source=str(run / "config.yaml"))


def load_states(run: Path, which: str, losses=None) -> tuple[configs.Config, dict[str, dict]]:
    """Read a run's settings and its learners' states by loss (all, or those named), unchecked.

    which: "best" (each loss's best validation by --best-by), "last", or a checkpoint of --keep-every, "step_1000".
    Raises ValueError.
    """
    config = read_settings(run)
    states, last = {}, {}
    if which not in ("best", "last"):
        last = learner_states(*load_kept(run, which))
    if which == "last":
        state, path, wrong = load_last(run)
        last = learner_states(state, path)
        if wrong:
            print(f"{wrong}; {path.name} of step {state.get('step')} is used instead")
    names = list(config.variants)
    for loss in [configs.choose(loss, names, f"loss in {run}") for loss in losses or names]:
        if which != "best" and loss not in last:
            raise ValueError(f"{run / which}.pt: holds no network of {loss}; add --best")
        states[loss] = load_checkpoint(run / f"best_{loss}.pt") if which == "best" else last[loss]
    return config, states


def load_networks(run: Path, which: str, losses=None) -> tuple[configs.Config, dict[str, nn.Module], list[str]]:
    """Read a run's settings, its SR networks by loss, and the judges and extractors of their losses.

    losses, which: as for load_states. Raises ValueError.
    """
    config, states = load_states(run, which, losses)
    nets, judges = {}, []
    for loss, state in states.items():
        weights = state.get(SR_NETWORK)
        network = config.model, config.scale, config.network_options
        net = build_network(*network, weights if is_state(weights) else None)
        load_network(net, state, f"{run} ({which}, {loss})", model_id(*network))
        nets[loss] = net
        judges += [judge for judge in state.get("judges", ()) if judge not in judges]
    return config, nets, judges
