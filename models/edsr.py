"""EDSR: Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017, arXiv 1707.02921.

The defaults are the "baseline" network (16 blocks, 64 channels, no residual scaling), without mean shift, as in the
TLW paper (arXiv 2301.10575). Parameter names are those of the authors' PyTorch release.
"""

from torch import Tensor, nn

from .padding import padding_colour
from .upsample import STEPS, PixelShuffleUpsampler, check_scale


class ResBlock(nn.Module):
    """conv, ReLU, conv and a skip: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class EDSR(nn.Module):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped. padding: see models/padding.py."""

    def __init__(self, scale: int, channels: int = 64, blocks: int = 16, padding: str = "grey") -> None:
        super().__init__()
        check_scale(scale, "EDSR")
        self.scale = scale
        self.feature_channels = channels
        self.feature_scale = 1
        self.receptive_radius = 2 * blocks + 4  # how many pixels of lr away a pixel of sr sees; so in other networks
        self.register_buffer("padding", padding_colour(padding), persistent=False)
        self.head = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1))
        self.body = nn.Sequential(
            *(ResBlock(channels) for _ in range(blocks)), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.tail = nn.Sequential(PixelShuffleUpsampler(channels, STEPS[scale]), nn.Conv2d(channels, 3, 3, padding=1))

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
