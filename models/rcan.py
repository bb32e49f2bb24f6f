"""RCAN, residual groups with channel attention.

Zhang et al., "Image Super-Resolution Using Very Deep Residual Channel Attention Networks", ECCV 2018, arXiv 1807.02758.

Without mean shift and with a single PixelShuffle(scale), as in the TLW paper (arXiv 2301.10575). The RCAN authors'
networks upsample in steps of x2, two for x4 and three for x8: upsample=two-step. Parameter names are those of their
release.
"""

from torch import Tensor, nn

from .base import SRNetwork
from .padding import padding_colour
from .upsample import STEPS, PixelShuffleUpsampler


class ChannelAttention(nn.Module):
    """Scale every channel by a gate in (0,1) computed from all channels' means: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(x.mean((2, 3), keepdim=True))


class ResidualChannelAttentionBlock(nn.Module):
    """conv, ReLU, conv, channel attention and a skip: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            ChannelAttention(channels, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResidualGroup(nn.Module):
    """A chain of blocks, a conv and a skip around them: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int, blocks: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(ResidualChannelAttentionBlock(channels, reduction) for _ in range(blocks)),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class RCAN(SRNetwork):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped.

    upsample: "one-step" or "two-step", see above. padding: see models/padding.py.
    """

    scales = (1, 2, 3, 4, 8)
    padding: Tensor

    def __init__(
        self,
        scale: int,
        channels: int = 64,
        groups: int = 10,
        blocks: int = 20,
        reduction: int = 16,
        upsample: str = "one-step",
        padding: str = "grey",
        colours: int = 3,
    ) -> None:
        super().__init__(scale, feature_channels=channels, colours=colours)
        steps = {"one-step": (scale,) * (scale > 1), "two-step": STEPS[scale]}
        if upsample not in steps:
            raise ValueError(f"upsample={upsample!r} is not known; use {' or '.join(steps)}")
        self.register_buffer("padding", padding_colour(padding, colours), persistent=False)
        self.head = nn.Sequential(nn.Conv2d(colours, channels, 3, padding=1))
        self.body = nn.Sequential(
            *(ResidualGroup(channels, blocks, reduction) for _ in range(groups)),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.tail = nn.Sequential(
            PixelShuffleUpsampler(channels, steps[upsample]), nn.Conv2d(channels, colours, 3, padding=1)
        )

    def forward_features(self, lr: Tensor) -> Tensor:
        x = self.head(lr - self.padding)
        return x + self.body(x)

    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        return self.tail(features)
