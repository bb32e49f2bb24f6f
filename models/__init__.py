"""The super-resolution networks by name.

All map lr (B,3,h,w) -> sr (B,3,s*h,s*w), RGB in [-1,1], not clamped; with colours=1, (B,1,h,w) -> (B,1,s*h,s*w).
"""

import inspect
import reprlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .base import SRNetwork, check_network
from .edsr import EDSR
from .hat import HAT
from .rcan import RCAN
from .rrdbnet import RRDBNet
from .spandrel_network import PREFIX, SpandrelNetwork
from .srresnet import SRResNet
from .vdsr import VDSR

# Called as SR_MODELS[name](scale=4, **options). "HAT" is the published network, "HAT-TLW" the small one of Table II.
SR_MODELS: dict[str, Callable[..., SRNetwork]] = {
    "EDSR": EDSR,
    "RCAN": RCAN,
    "VDSR": VDSR,
    "SRResNet": SRResNet,
    "RRDBNet": RRDBNet,
    "HAT": HAT,
    "HAT-TLW": partial(HAT, embed=96, depths=(6,) * 4, heads=(6,) * 4, window=7, overlap_ratio=0.0, mlp_ratio=4.0),
}


def init_paper(module: nn.Module) -> None:
    """Initialise a network in place as the TLW paper's code does, from torch's global random stream.

    Weights of Conv2d, Linear and BatchNorm2d ~ N(0, 0.02^2); biases of Linear and BatchNorm2d ~ N(0.02, 1);
    everything else (biases of convolutions, LayerNorm) keeps its values. The means of 0.02 with a deviation of 1 look
    like a slip in the original, kept because its results were made with it.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        if isinstance(layer, (nn.Linear, nn.BatchNorm2d)) and layer.bias is not None:
            nn.init.normal_(layer.bias, 0.02, 1.0)


def option_defaults(name: str) -> dict[str, Any]:
    """The options of SR_MODELS[name] with their defaults."""
    parameters = inspect.signature(SR_MODELS[name]).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "scale"]
    return {p.name: p.default for p in named}


MOST, MOST_WEIGHTS = 4096, 10**9  # of an option, and of all: a network of a billion blocks takes hours to build


def fits_default(value: Any, default: Any) -> str | None:
    """The kind of value that fits an option with this default, if value does not; None if it does.

    Numbers are at least 1, or 0 if the default is a fraction or 0 itself.
    """
    if isinstance(default, (tuple, list)):
        fits = isinstance(value, (tuple, list)) and 0 < len(value) <= 64
        fits = fits and not any(fits_default(each, default[0]) for each in value)
        return None if fits else f"a list of up to 64, such as [{','.join(map(str, default))}]"
    if isinstance(default, bool) or isinstance(default, str):
        return None if type(value) is type(default) else f"such as {default}"
    if isinstance(default, int):
        least = min(1, default)
        return None if type(value) is int and least <= value <= MOST else f"a whole number from {least} to {MOST}"
    if isinstance(default, float):
        return None if type(value) in (int, float) and 0 <= value <= MOST else f"a number from 0 to {MOST}"
    return None


def check_options(name: str, options: Mapping) -> None:
    """Raise ValueError unless SR_MODELS[name] has these options, and each value is of its default's kind."""
    defaults = option_defaults(name)
    listed = " ".join(f"{key}={list(x) if isinstance(x, tuple) else x}".replace(" ", "") for key, x in defaults.items())
    for option, value in options.items():
        shown = f"--model-options {option}={reprlib.repr(value)}"
        if option == "scale":
            raise ValueError(f"{shown}: expected no scale, which is --scale")
        wanted = "an option that it has" if option not in defaults else fits_default(value, defaults[option])
        if wanted:
            raise ValueError(f"{shown}: expected {wanted}; the options of {name} and their defaults: {listed}")


def build_network(
    name: str, scale: int, options: Mapping | None = None, weights: Mapping[str, Tensor] | None = None
) -> SRNetwork | SpandrelNetwork:
    """Build the SR network `name` with fresh weights; a "spandrel:FILE" is built from its weights.

    weights: a state dict that spandrel reads, or one of SpandrelNetwork; others have no use for it. Raises ValueError
    for an unknown name, a wrong option, a network that breaks SRNetwork's contract and weights that spandrel cannot
    read.
    """
    if name.startswith(PREFIX):
        if (options or {}).get("colours") == 1:
            raise ValueError(f"--color grey: a network of ours; {name} is one of spandrel's, for RGB")
        if options:
            raise ValueError(f"--model-options {dict(options)}: the file says what network it is; leave them out")
        try:
            return SpandrelNetwork(weights or {}, scale)
        except ValueError as error:
            raise ValueError(f"--model {name}: {error}") from None
    if name not in SR_MODELS:
        raise ValueError(f"unknown model {name!r}; one of: {', '.join(SR_MODELS)}")
    options = options or {}
    _check_scale(name, scale)
    if "colours" in options and "colours" not in option_defaults(name):
        raise ValueError(f"--color grey: {name} has no option `colours`; give it one, see models/base.py")
    check_options(name, options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers without weights, which the check refuses
            if options:
                _check_size(name, scale, options)
            return check_network(SR_MODELS[name](scale=scale, **options), scale)
    except Exception as error:  # options that do not fit together
        reason = f"{type(error).__name__}: {str(error).split('() ')[-1]}"[:160]
        if options:
            raise ValueError(f"--model-options {options}: {name} cannot be built with them ({reason})") from None
        raise ValueError(f"{name} cannot be built ({reason}); fix SR_MODELS[{name!r}] in models/__init__.py") from error


def scales_of(name: str) -> tuple[int, ...]:
    """The scales of SR_MODELS[name]; none if it does not say."""
    entry: Any = SR_MODELS[name]
    return getattr(getattr(entry, "func", entry), "scales", ())


def _check_scale(name: str, scale: int) -> None:
    """Raise ValueError if the network does not come in this scale."""
    scales = scales_of(name)
    if scales and scale not in scales:
        others = " ".join(other for other in SR_MODELS if scale in scales_of(other))
        remedy = f"; networks for x{scale}: {others}" if others else ""
        raise ValueError(f"--scale {scale}: {name} comes in {', '.join(map(str, scales))}{remedy}")


def _check_size(name: str, scale: int, options: Mapping) -> None:
    """Raise ValueError if the network would have more than MOST_WEIGHTS; takes no memory."""
    with torch.device("meta"):
        size = sum(tensor.numel() for tensor in SR_MODELS[name](scale=scale, **options).state_dict().values())
    if size > MOST_WEIGHTS:
        raise ValueError(f"{size:.3g} weights, more than {MOST_WEIGHTS}")


def model_id(name: str, scale: int, options: Mapping | None = None) -> str:
    """The name of a network in checkpoints, such as "EDSR x4 blocks=4": shapes do not tell the scale.

    The file of a spandrel network may move; its names and shapes say the rest.
    """
    name = PREFIX.removesuffix(":") if name.startswith(PREFIX) else name
    words = [f"{option}={value}" for option, value in sorted((options or {}).items())]
    return " ".join([f"{name} x{scale}", *words])
