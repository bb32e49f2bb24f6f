"""What a saved state must be before anything of it is taken up: a stranger's, or a damaged one, may be anything.

A fused optimizer takes a moment of another shape at its word, and reads and writes beyond it.
"""

import math

import torch
from torch import Tensor, nn


def expect(fits: bool, source: str, what: str) -> None:
    """Raise ValueError unless it fits; what: which part of the state in the file `source` is wrong."""
    if not fits:
        raise ValueError(f"{source}: not a state of this run ({what})")


def is_count(value: object) -> bool:
    """Whether value is a whole number from 0 on."""
    return type(value) is int and value >= 0


def kind(value: object) -> tuple | None:
    """What has to be the same of two tensors; None where value is no tensor."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def check_weights(module: nn.Module, weights: object, source: str, wanted: str) -> None:
    """Raise ValueError unless weights is a state dict with exactly the module's names, shapes and types.

    wanted: what it should be of, in words.
    """
    own = module.state_dict()
    kinds = {name: kind(value) for name, value in weights.items()} if isinstance(weights, dict) else {}
    wrong = [name for name in own if name not in kinds or kinds[name] != kind(own[name])]
    wrong += [name for name in kinds if name not in own]
    if wrong:
        raise ValueError(f"{source}: not a checkpoint of {wanted} ({len(wrong)} entries do not fit, as {wrong[0]})")


def moments(opt: torch.optim.Adam, saved: object, source: str) -> dict:
    """The state dict for opt: Adam's moments of its parameters as saved, its settings as they are.

    Raises ValueError unless each is of its parameter's shape and type.
    """
    found = saved.get("state") if isinstance(saved, dict) else None
    expect(isinstance(found, dict), source, "an optimizer without moments")
    parameters = [p for group in opt.param_groups for p in group["params"]]
    for number, entry in found.items():
        expect(is_count(number) and number < len(parameters), source, f"moments of a parameter {number!r}")
        expect(isinstance(entry, dict) and entry.keys() == {"step", "exp_avg", "exp_avg_sq"}, source,
               f"other moments than Adam's of parameter {number}")
        fits = all(kind(entry[name]) == kind(parameters[number]) for name in ("exp_avg", "exp_avg_sq"))
        expect(fits and kind(entry["step"]) == ((), torch.float32), source, f"moments of parameter {number}")
    return {"state": found, "param_groups": opt.state_dict()["param_groups"]}


def check_streams(saved: object, needed: dict[str, Tensor], source: str) -> None:
    """Raise ValueError unless saved holds states of the CPU's stream and of those of `needed` that it has."""
    expect(isinstance(saved, dict) and "cpu" in saved, source, "no stream of random numbers")
    for device in saved.keys() & needed.keys():
        try:
            torch.Generator(device).set_state(saved[device])
        except (RuntimeError, TypeError):
            expect(False, source, f"the stream of random numbers of {device}")


def check_numbers(state: dict, source: str) -> None:
    """Raise ValueError unless a learner's best score and counts of skipped steps are such."""
    best, skips = state["best"], state.get("skips", [0, 0])
    expect(isinstance(best, float) and not math.isnan(best), source, f"the best score {best!r}")
    expect(isinstance(skips, list) and len(skips) == 2 and all(map(is_count, skips)), source, "counts of skipped steps")


def check_place(state: dict, source: str) -> None:
    """Raise ValueError unless a run's place, which is in its last.pt beside its learners, is one."""
    expect(is_count(state["step"]), source, f"step {state['step']!r}")
    expect(isinstance(state.get("validated", True), bool), source, "whether it is validated")
    images = state.get("images")
    expect(images is None or isinstance(images, list) and all(map(is_count, images)), source, "its images' checksums")
    names = state["yardstick"]
    expect(isinstance(names, list) and all(isinstance(name, str) for name in names), source, "what best is measured by")
