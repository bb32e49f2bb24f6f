"""VDSR: Kim et al., "Accurate Image Super-Resolution Using Very Deep Convolutional Networks", CVPR 2016,
arXiv 1511.04587.

As in the TLW paper (arXiv 2301.10575): RGB instead of luminance, 10 inner convolutions instead of 18, no biases, and
the network enlarges its input itself (PyTorch's bicubic).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .upsample import check_scale


class VDSR(nn.Module):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped: bicubic plus a learned residual."""

    def __init__(self, scale: int, channels: int = 64, blocks: int = 10) -> None:
        super().__init__()
        check_scale(scale, "VDSR")
        self.scale = scale
        self.feature_channels = channels
        self.feature_scale = scale
        self.receptive_radius = -(-(blocks + 2) // scale) + 2
        self.head = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.ReLU(inplace=True))
                for _ in range(blocks)
            )
        )
        self.tail = nn.Conv2d(channels, 3, 3, padding=1, bias=False)

    def bicubic(self, lr: Tensor) -> Tensor:
        """lr (B,3,h,w) -> (B,3,s*h,s*w), the image that the network corrects."""
        return F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False)

    def forward_features(self, lr: Tensor) -> Tensor:
        """lr (B,3,h,w) -> the body's features before reconstruction, at HR size: (B,channels,s*h,s*w)."""
        return self.body(self.head(self.bicubic(lr)))

    def forward_with_features(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """sr and the features it was made from, in one pass: what a second head on the body needs."""
        features = self.forward_features(lr)
        return self.bicubic(lr) + self.tail(features), features

    def forward(self, lr: Tensor) -> Tensor:
        return self.forward_with_features(lr)[0]
