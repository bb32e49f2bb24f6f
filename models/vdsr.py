"""VDSR, which predicts the residual to bicubic upscaling.

Kim et al., "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", CVPR 2016, arXiv 1511.04587.

As in the TLW paper (arXiv 2301.10575): RGB instead of luminance, 10 inner convolutions instead of 18, no biases, and
the network enlarges its input itself (PyTorch's bicubic).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import SRNetwork


class VDSR(SRNetwork):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped."""

    scales = (1, 2, 3, 4, 8)

    def __init__(self, scale: int, channels: int = 64, blocks: int = 10, colours: int = 3) -> None:
        radius = -(-(blocks + 2) // scale) + 2
        super().__init__(
            scale, feature_channels=channels, feature_scale=scale, receptive_radius=radius, colours=colours
        )
        self.head = nn.Sequential(nn.Conv2d(colours, channels, 3, padding=1, bias=False), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.ReLU(inplace=True))
                for _ in range(blocks)
            )
        )
        self.tail = nn.Conv2d(channels, colours, 3, padding=1, bias=False)

    def bicubic(self, lr: Tensor) -> Tensor:
        """lr (B,3,h,w) -> (B,3,s*h,s*w), the image to which the network adds its residual."""
        return F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False)

    def forward_features(self, lr: Tensor) -> Tensor:
        return self.body(self.head(self.bicubic(lr)))

    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        return self.bicubic(lr) + self.tail(features)
