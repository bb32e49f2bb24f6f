"""The pixel losses that treat all pixels alike: the paper's baselines L1 and MSE."""

from torch import Tensor, nn

from .target import Target


def absolute_error(sr: Tensor, hr: Tensor) -> Tensor:
    """|sr - hr| per pixel and channel."""
    return (sr - hr).abs()


def squared_error(sr: Tensor, hr: Tensor) -> Tensor:
    """(sr - hr)^2 per pixel and channel."""
    return (sr - hr).square()


class PixelLoss(nn.Module):
    """Mean of `error` over all pixels. loss(sr (B,3,H,W) in [-1,1], target, epoch) -> scalar."""

    helper = None  # nothing but the SR network learns

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, sr: Tensor, target: Target, epoch: int) -> Tensor:
        return self.error(sr, target.hr).mean()
