"""EDSR, a residual network without BatchNorm.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017, arXiv 1707.02921.

The defaults are the "baseline" network (16 blocks, 64 channels, no residual scaling), without mean shift, as in the
TLW paper (arXiv 2301.10575). Parameter names are those of the authors' PyTorch release.
"""

import torch
from torch import Tensor, nn

from .base import SRNetwork
from .padding import padding_colour
from .upsample import STEPS, PixelShuffleUpsampler


class ResBlock(nn.Module):
    """conv, ReLU, conv, times res_scale, and a skip: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.body(x), alpha=self.res_scale)


class EDSR(SRNetwork):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped.

    res_scale: factor on each block's residual (section 3.3 of the paper: 0.1 keeps wide networks stable).
    padding: see models/padding.py.
    """

    scales = (1, 2, 3, 4, 8)
    padding: Tensor

    def __init__(
        self,
        scale: int,
        channels: int = 64,
        blocks: int = 16,
        res_scale: float = 1.0,
        padding: str = "grey",
        colours: int = 3,
    ) -> None:
        super().__init__(scale, feature_channels=channels, receptive_radius=2 * blocks + 4, colours=colours)
        self.register_buffer("padding", padding_colour(padding, colours), persistent=False)
        self.head = nn.Sequential(nn.Conv2d(colours, channels, 3, padding=1))
        self.body = nn.Sequential(
            *(ResBlock(channels, res_scale) for _ in range(blocks)), nn.Conv2d(channels, channels, 3, padding=1)
        )
        upsampler = PixelShuffleUpsampler(channels, STEPS[scale])
        self.tail = nn.Sequential(upsampler, nn.Conv2d(channels, colours, 3, padding=1))

    def forward_features(self, lr: Tensor) -> Tensor:
        x = self.head(lr - self.padding)
        return x + self.body(x)

    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        return self.tail(features)
