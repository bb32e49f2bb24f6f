"""RCAN: Zhang et al., "Image Super-Resolution Using Very Deep Residual Channel Attention Networks", ECCV 2018,
arXiv 1807.02758.

Without mean shift and with a single PixelShuffle(scale), as in the TLW paper (arXiv 2301.10575). The RCAN authors'
own x4 network upsamples in two steps of x2: upsample=two-step. Parameter names are those of the RCAN authors' release.
"""

from torch import Tensor, nn

from .padding import padding_colour
from .upsample import STEPS, PixelShuffleUpsampler, check_scale


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
    """A chain of blocks, a conv and a skip over all of them: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int, blocks: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(ResidualChannelAttentionBlock(channels, reduction) for _ in range(blocks)),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class RCAN(nn.Module):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped. padding: see models/padding.py."""

    def __init__(
        self,
        scale: int,
        channels: int = 64,
        groups: int = 10,
        blocks: int = 20,
        reduction: int = 16,
        upsample: str = "one-step",
        padding: str = "grey",
    ) -> None:
        super().__init__()
        check_scale(scale, "RCAN")
        steps = {"one-step": (scale,), "two-step": STEPS[scale]}
        if upsample not in steps:
            raise ValueError(f"upsample={upsample!r} is not known; use {' or '.join(steps)}")
        self.scale = scale
        self.feature_channels = channels
        self.feature_scale = 1
        self.register_buffer("padding", padding_colour(padding), persistent=False)
        self.head = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1))
        self.body = nn.Sequential(
            *(ResidualGroup(channels, blocks, reduction) for _ in range(groups)),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.tail = nn.Sequential(
            PixelShuffleUpsampler(channels, steps[upsample]), nn.Conv2d(channels, 3, 3, padding=1)
        )

    def forward_features(self, lr: Tensor) -> Tensor:
        """lr (B,3,h,w) -> the body's features before upsampling (B,channels,h,w)."""
        x = self.head(lr - self.padding)
        return x + self.body(x)

    forward_body = forward_features

    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        """The body's features and the lr they come from -> sr."""
        return self.tail(features)

    def forward_with_features(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """sr and the features it was made from, in one pass: what a second head on the body needs."""
        features = self.forward_features(lr)
        return self.forward_head(lr, features), features

    def forward(self, lr: Tensor) -> Tensor:
        return self.forward_with_features(lr)[0]
