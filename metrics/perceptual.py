"""LPIPS, as a metric and as the judge D of TLW.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018; version 0.1,
through the modules of the authors' `lpips` package. Images are RGB in [-1,1].
"""

import warnings
from collections.abc import Iterator
from typing import Any

import lpips
import torch
from torch import Tensor, nn

from .backbones import fill_backbone, find_backbone
from .deep_features import DeepDistance
from .ops.strided import StridedConv

# The smallest height and width of an image that each network's pooling accepts.
MIN_SIZES = {"vgg": 16, "alex": 31, "squeeze": 17}
# DeepDistance's pixel_bytes of each network.
PIXEL_BYTES = {"vgg": (2300, 640), "alex": (150, 64), "squeeze": (720, 200)}


class Scaled(nn.Module):
    """Images (N,3,H,W) in [-1,1] -> an iterator over the features of a network of the `lpips` package.

    scaling: the package's normalisation by ImageNet's statistics. bgr: flip the channels first.
    """

    def __init__(self, scaling: nn.Module, net: nn.Module, slices: int, bgr: bool) -> None:
        super().__init__()
        self.scaling, self.net, self.bgr = scaling, net, bgr
        self.names = [f"slice{i}" for i in range(1, slices + 1)]

    def forward(self, images: Tensor) -> Iterator[Tensor]:
        x = self.scaling(images.flip(1) if self.bgr else images)
        for name in self.names:
            x = self.net.get_submodule(name)(x)
            yield x


class LPIPS(DeepDistance):
    """LPIPS v0.1, frozen: a, b (B,3,H,W) in [-1,1] -> (B,). Its name is such as "LPIPS-alex-unweighted".

    Args:
        net: "vgg", "alex" or "squeeze".
        heads: use the trained per-channel weights; otherwise all are 1.
        weights: local weights files, see `find_backbone`.
        bgr: feed the channels in OpenCV's order, BGR, as the released TLW code does.
        options: `memory` and `check_range` of DeepDistance.

    Raises ValueError if the weights cannot be read or downloaded.
    """

    def __init__(self, net: str, heads: bool = True, weights: tuple = (), bgr: bool = False, **options):
        path, features = find_backbone(net, weights)
        with warnings.catch_warnings():  # the package uses a deprecated argument of torchvision
            warnings.simplefilter("ignore", UserWarning)
            modules: Any = lpips.LPIPS(net=net, lpips=heads, pnet_rand=True, verbose=False)
        if net == "alex":
            modules.net.slice1[0] = StridedConv.of(modules.net.slice1[0])
        fill_backbone(modules.net, features, path)
        channel_weights = [head.model[-1].weight for head in modules.lins] if heads else map(torch.ones, modules.chns)
        name = f"LPIPS-{net}{'' if heads else '-unweighted'}{'-BGR' if bgr else ''}"
        backbone = Scaled(modules.scaling_layer, modules.net, modules.net.N_slices, bgr)
        super().__init__(backbone, channel_weights, name, MIN_SIZES[net], PIXEL_BYTES[net], **options)
