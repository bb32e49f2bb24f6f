"""The super-resolution networks by name. All map lr (B,3,h,w) -> sr (B,3,s*h,s*w), RGB in [-1,1], not clamped."""

from collections.abc import Callable
from functools import partial

from torch import nn

from .edsr import EDSR
from .hat import HAT
from .rcan import RCAN
from .rrdbnet import RRDBNet
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
    "HAT-TLW": partial(
        HAT, embed=96, depths=(6,) * 4, heads=(6,) * 4, window=7, overlap_ratio=0.0, mlp_ratio=4.0
    ),
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
