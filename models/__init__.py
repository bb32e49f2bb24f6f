"""The super-resolution networks by name. All map lr (B,3,h,w) -> sr (B,3,s*h,s*w), RGB in [-1,1], not clamped."""

import reprlib
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from .base import SRNetwork, check_network
from .edsr import EDSR
from .hat import HAT
from .rcan import RCAN
from .rrdbnet import RRDBNet
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


def build_network(name: str, scale: int, options: Mapping | None = None) -> SRNetwork:
    """Build the SR network `name` with fresh weights.

    Raises ValueError for an unknown name, an option that does not fit and a network that breaks SRNetwork's contract.
    """
    if name not in SR_MODELS:
        raise ValueError(f"unknown model {name!r}; one of: {', '.join(SR_MODELS)}")
    options = options or {}
    if "scale" in options:
        raise ValueError(f"--model-options {options}: expected no scale, which is --scale")
    for option, value in options.items():  # a network of a billion blocks takes hours to build
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > 64 or any(n > 4096 for n in numbers if isinstance(n, int | float)):
            raise ValueError(
                f"--model-options {option}={reprlib.repr(value)}: expected numbers up to 4096, lists of up to 64"
            )
    try:
        return check_network(SR_MODELS[name](scale=scale, **options), scale)
    except Exception as error:  # options may be of any type and value, and networks do not check them
        reason = f"{type(error).__name__}: {str(error).split('() ')[-1]}"[:160]
        if options:
            raise ValueError(f"--model-options {options}: {name} cannot be built with them ({reason})") from None
        raise ValueError(f"{name} cannot be built ({reason}); mend SR_MODELS[{name!r}]") from error


def model_id(name: str, scale: int, options: Mapping | None = None) -> str:
    """The name of this network in checkpoints, such as "EDSR x4 blocks=4": the shapes do not tell the scale."""
    words = [f"{option}={value}" for option, value in sorted((options or {}).items())]
    return " ".join([f"{name} x{scale}", *words])
