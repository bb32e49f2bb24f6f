"""SRResNet, the generator of SRGAN.

Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a GAN", CVPR 2017, arXiv 1609.04802.

This is BasicSR's MSRResNet (1,517,571 parameters at x4): without BatchNorm, it predicts the residual to lr's bilinear
upsampling. SRGAN-DP's generator predicts the whole image instead (bilinear_skip=False). Parameter names are BasicSR's.
"""

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .base import SRNetwork
from .padding import padding_colour
from .upsample import STEPS, conv_pixel_shuffle


def init_small(convs: Iterable[Any]) -> None:
    """Initialise convolutions in place with a tenth of Kaiming's weights and zero biases.

    Deep residual networks train more easily so (ESRGAN, arXiv 1809.00219, section 3.1). Uses torch's global random
    stream.
    """
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight)
        conv.weight.data.mul_(0.1)
        nn.init.zeros_(conv.bias)


class ResBlock(nn.Module):
    """conv, ReLU, conv and a skip: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


class SRResNet(SRNetwork):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped.

    bilinear_skip: add lr's bilinear upsampling to the output.
    padding: "black" makes it equivalent to BasicSR's network in [0,1], see models/padding.py.
    """

    padding: Tensor

    def __init__(
        self,
        scale: int,
        channels: int = 64,
        blocks: int = 16,
        bilinear_skip: bool = True,
        padding: str = "grey",
        colours: int = 3,
    ) -> None:
        super().__init__(scale, feature_channels=channels, receptive_radius=2 * blocks + 3, colours=colours)
        self.bilinear_skip = bilinear_skip
        self.register_buffer("padding", padding_colour(padding, colours), persistent=False)
        self.conv_first = nn.Conv2d(colours, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResBlock(channels) for _ in range(blocks)))
        for i, factor in enumerate(STEPS[scale], start=1):
            self.add_module(f"upconv{i}", nn.Conv2d(channels, factor**2 * channels, 3, padding=1))
        self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, colours, 3, padding=1)
        init_small(layer for layer in self.modules() if isinstance(layer, nn.Conv2d))

    def forward_features(self, lr: Tensor) -> Tensor:
        return self.body(F.leaky_relu(self.conv_first(lr - self.padding), 0.1))

    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        x = features
        for i, factor in enumerate(STEPS[self.scale], start=1):
            conv: Any = self.get_submodule(f"upconv{i}")
            x = F.leaky_relu(conv_pixel_shuffle(conv, x, factor), 0.1)
        sr = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.1))
        if self.bilinear_skip:
            sr = F.interpolate(lr, scale_factor=self.scale, mode="bilinear", align_corners=False) + sr
        return sr
