"""The super-resolution networks by name. All map lr (B,3,h,w) -> sr (B,3,s*h,s*w), RGB in [-1,1], not clamped."""

import reprlib
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from .edsr import EDSR
from .hat import HAT
from .rcan import RCAN
from .rrdbnet import RRDBNet
from .spandrel_network import PREFIX, SpandrelNetwork
from .srresnet import SRResNet
from .vdsr import VDSR

# Called as SR_MODELS[name](scale=4, **options). "HAT" is the published network, "HAT-TLW" the small one of Table II.
SR_MODELS: dict[str, Callable[..., nn.Module]] = {
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


def build_network(
    name: str, scale: int, options: Mapping | None = None, weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The SR network `name` with fresh weights; that of "spandrel:FILE" is built from the weights, and with them.

    weights: a state dict that spandrel reads, or one of SpandrelNetwork; others have no use for it. Raises ValueError
    for an unknown name, an option that does not fit and weights that spandrel does not read.
    """
    if name.startswith(PREFIX):
        if options:
            raise ValueError(f"--model-options {dict(options)}: the file says what network it is; leave them out")
        try:
            return SpandrelNetwork(weights or {}, scale)
        except ValueError as error:
            raise ValueError(f"--model {name}: {error}") from None
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
        net = SR_MODELS[name](scale=scale, **options)
        if options:  # some wrong options show in the first forward only
            with torch.no_grad():
                net(torch.zeros(1, 3, 8, 8))
    except Exception as error:  # options may be of any type and value, and networks do not check them
        if not options:
            raise
        reason = f"{type(error).__name__}: {str(error).split('() ')[-1]}"[:160]
        raise ValueError(f"--model-options {options}: {name} cannot be built with them ({reason})") from None
    return net


def model_id(name: str, scale: int, options: Mapping | None = None) -> str:
    """What a checkpoint of this network is called: weights of two scales may have the same shapes.

    The file of a spandrel network may move; its names and shapes say the rest.
    """
    name = PREFIX.removesuffix(":") if name.startswith(PREFIX) else name
    words = [f"{option}={value}" for option, value in sorted((options or {}).items())]
    return " ".join([f"{name} x{scale}", *words])
