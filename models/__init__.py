"""The super-resolution networks by name, and how to build them.

Each maps lr (B,3,h,w) -> sr (B,3,s*h,s*w), RGB in [-1,1], not clamped; with colours=1, (B,1,h,w) -> (B,1,s*h,s*w).
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
    convolutions' biases and LayerNorm keep their values. N(0.02, 1) looks like swapped arguments in the original; it is
    kept because the paper's results were made with it.
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


# Limits of an option's value and of a network's size: a network of a billion blocks would take hours to build.
MOST, MOST_WEIGHTS = 4096, 10**9


def fits_default(value: Any, default: Any) -> str | None:
    """Return None if value fits an option with this default, else a description of the values that do.

    An int is at least 1, or 0 if the default is 0; a float is at least 0. MOST is the largest number.
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
    """Raise ValueError unless SR_MODELS[name] has these options and each value fits its default."""
    defaults = option_defaults(name)
    listed = " ".join(f"{key}={list(x) if isinstance(x, tuple) else x}".replace(" ", "") for key, x in defaults.items())
    for option, value in options.items():
        shown = f"--model-options {option}={reprlib.repr(value)}"
        if option == "scale":
            raise ValueError(f"{shown}: the scale is no model option; use --scale")
        wanted = "an option that it has" if option not in defaults else fits_default(value, defaults[option])
        if wanted:
            raise ValueError(f"{shown}: expected {wanted}; the options of {name} and their defaults: {listed}")


def build_network(
    name: str, scale: int, options: Mapping | None = None, weights: Mapping[str, Tensor] | None = None
) -> SRNetwork | SpandrelNetwork:
    """Build the SR network `name` with fresh weights, or "spandrel:FILE" with `weights`.

    weights: a state dict that spandrel reads, or SpandrelNetwork's own; ignored for other networks.

    Raises ValueError for an unknown name, scale or option, a network that breaks SRNetwork's contract, or weights that
    spandrel cannot read.
    """
    if name.startswith(PREFIX):
        if (options or {}).get("colours") == 1:
            raise ValueError(f"--color grey: {name} is spandrel's and takes RGB; use one of {', '.join(SR_MODELS)}")
        if options:
            raise ValueError(f"--model-options {dict(options)}: the file decides the network; leave them out")
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
            warnings.simplefilter("ignore")  # torch warns of layers without weights; check_network rejects them
            if options:
                _check_size(name, scale, options)
            return check_network(SR_MODELS[name](scale=scale, **options), scale)
    except Exception as error:  # options that do not fit together
        reason = f"{type(error).__name__}: {str(error).split('() ')[-1]}"[:160]
        if options:
            raise ValueError(f"--model-options {options}: {name} cannot be built with them ({reason})") from None
        raise ValueError(f"{name} cannot be built ({reason}); fix SR_MODELS[{name!r}] in models/__init__.py") from error


def scales_of(name: str) -> tuple[int, ...]:
    """The scales of SR_MODELS[name]; () if it declares none."""
    entry: Any = SR_MODELS[name]
    return getattr(getattr(entry, "func", entry), "scales", ())


def _check_scale(name: str, scale: int) -> None:
    """Raise ValueError if the network does not support this scale."""
    scales = scales_of(name)
    if scales and scale not in scales:
        others = " ".join(other for other in SR_MODELS if scale in scales_of(other))
        remedy = f"; networks for x{scale}: {others}" if others else ""
        raise ValueError(f"--scale {scale}: {name} comes in {', '.join(map(str, scales))}{remedy}")


def _check_size(name: str, scale: int, options: Mapping) -> None:
    """Raise ValueError if the network would have more than MOST_WEIGHTS weights; allocates none of them."""
    with torch.device("meta"):
        size = sum(tensor.numel() for tensor in SR_MODELS[name](scale=scale, **options).state_dict().values())
    if size > MOST_WEIGHTS:
        raise ValueError(f"{size:.3g} weights, more than {MOST_WEIGHTS}")


def model_id(name: str, scale: int, options: Mapping | None = None) -> str:
    """Name a network in checkpoints, as in "EDSR x4 blocks=4", for shapes do not tell the scale.

    For a spandrel network the file's path is left out, because the file may move.
    """
    name = PREFIX.removesuffix(":") if name.startswith(PREFIX) else name
    words = [f"{option}={value}" for option, value in sorted((options or {}).items())]
    return " ".join([f"{name} x{scale}", *words])
