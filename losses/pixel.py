"""The plain pixel losses, the paper's baselines L1 and MSE."""

from collections.abc import Callable

from torch import Tensor

from .base import Loss
from .target import Target

LEVELS = 255 / 2  # 8-bit levels per unit of images in [-1,1]


def absolute_error(sr: Tensor, hr: Tensor) -> Tensor:
    """|sr - hr| per pixel and channel."""
    return (sr - hr).abs()


def squared_error(sr: Tensor, hr: Tensor) -> Tensor:
    """(sr - hr)^2 per pixel and channel."""
    return (sr - hr).square()


class PixelLoss(Loss):
    """The mean over all pixels of error(sr, hr), images (B,3,H,W) -> errors (B,3,H,W)."""

    def __init__(self, error: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.error = error

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        return self.error(sr, target.hr).mean()
