"""RRDBNet, residual-in-residual dense blocks, the generator of ESRGAN.

Wang et al., ECCVW 2018, arXiv 1809.00219.

The defaults are the published network (16,697,987 parameters at x4); parameter names are BasicSR's. At x2 and x3 there
is one upsampling step instead of two, as in the authors' first code and BSRGAN's x2 network. BasicSR's own x2 network
(pixel unshuffle, then the x4 network) is different, and its checkpoints do not fit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import SRNetwork
from .padding import padding_colour
from .srresnet import init_small
from .upsample import STEPS

RESIDUAL_SCALE = 0.2
SLOPE = 0.2  # of the leaky ReLUs


class DenseBlock(nn.ModuleDict):
    """Five densely connected convolutions and a scaled skip: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int, growth: int) -> None:
        widths = [growth] * 4 + [channels]
        super().__init__(
            {f"conv{i + 1}": nn.Conv2d(channels + i * growth, width, 3, padding=1) for i, width in enumerate(widths)}
        )
        init_small(self.values())

    def forward(self, x: Tensor) -> Tensor:
        *convs, last = self.values()
        seen = x
        for conv in convs:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), SLOPE, inplace=True)], dim=1)
        return x + RESIDUAL_SCALE * last(seen)


class RRDB(nn.ModuleDict):
    """Three dense blocks in a row and a scaled skip around them: (B,C,h,w) -> (B,C,h,w)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__({f"rdb{i}": DenseBlock(channels, growth) for i in (1, 2, 3)})

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.values():
            y = block(y)
        return x + RESIDUAL_SCALE * y


class RRDBNet(SRNetwork):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped.

    padding="black" makes it equivalent to BasicSR's network in [0,1], see models/padding.py.
    """

    padding: Tensor

    def __init__(
        self,
        scale: int,
        channels: int = 64,
        blocks: int = 23,
        growth: int = 32,
        padding: str = "grey",
        colours: int = 3,
    ) -> None:
        super().__init__(scale, feature_channels=channels, receptive_radius=15 * blocks + 4, colours=colours)
        self.register_buffer("padding", padding_colour(padding, colours), persistent=False)
        self.conv_first = nn.Conv2d(colours, channels, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(channels, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        for i, _ in enumerate(STEPS[scale], start=1):
            self.add_module(f"conv_up{i}", nn.Conv2d(channels, channels, 3, padding=1))
        self.conv_hr = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, colours, 3, padding=1)

    def forward_features(self, lr: Tensor) -> Tensor:
        x = self.conv_first(lr - self.padding)
        return x + self.conv_body(self.body(x))

    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        x = features
        for i, factor in enumerate(STEPS[self.scale], start=1):
            upsampled = F.interpolate(x, scale_factor=factor, mode="nearest")
            x = F.leaky_relu(self.get_submodule(f"conv_up{i}")(upsampled), SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))
