"""Features of length 1 in every pixel, and the weighted squared difference of two such maps: Eq. (1) of LPIPS.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018. Written down plainly
the difference reads and writes all features some ten times, and more often for its gradient; on the CPU `difference`
takes a few rows of an image at a time through all of it, while they are in the cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_TINY = 1e-20  # far below what float32 resolves of any other square sum of features
_AT_ONCE = 1 << 16  # features on the CPU: 256 KB in float32


def unit_normalise(features: Tensor) -> Tensor:
    """Features (N,C,H,W) of any dtype -> float32 of length 1 along C.

    The square root's argument stays above 0, so that pixels without any feature have a finite gradient.
    """
    features = features.float()
    return features * (features.square().sum(dim=1, keepdim=True) + _TINY).rsqrt()


def difference(features: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """The spatial mean of sum_c weight_c (u - r)^2, u the features made unit_normalise(features) -> (N,), float32.

    features (N,C,H,W) of any dtype, in which the gradient is; reference r (B,C,H,W), normalised, N a multiple of B:
    image i has reference i modulo B; weight (C,) >= 0. Once differentiable, in the features alone.
    """
    return _Difference.apply(features, reference, weight, torch.is_grad_enabled() and features.requires_grad)


class _Difference(torch.autograd.Function):
    """With the slopes, each image's gradient, made on the way where they will be asked for."""

    @staticmethod
    def forward(ctx, features: Tensor, reference: Tensor, weight: Tensor, with_slopes: bool) -> Tensor:
        pixels = features.shape[2] * features.shape[3]
        totals = torch.zeros(len(features), device=features.device)
        slopes = torch.empty_like(features) if with_slopes else None
        for images, references, rows in _parts(features, len(reference)):
            values = features[images, :, rows].permute(0, 2, 3, 1).float()
            length = (values.square().sum(dim=-1, keepdim=True) + _TINY).rsqrt()
            unit = values * length
            gap = unit - reference[references, :, rows].permute(0, 2, 3, 1)
            weighted = gap * weight
            totals[images] += gap.mul_(weighted).sum(dim=(1, 2, 3))
            if with_slopes:
                along = (unit * weighted).sum(dim=-1, keepdim=True)
                slope = weighted.sub_(unit.mul_(along)).mul_(length.mul_(2 / pixels))
                slopes[images, :, rows] = slope.permute(0, 3, 1, 2)
        ctx.save_for_backward(slopes)
        return totals / pixels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None, None, None] * slopes).to(slopes.dtype), None, None, None


def _parts(features: Tensor, references: int) -> Iterator[tuple[slice, slice, slice]]:
    """Which images, references and rows to take at a time: on a GPU whole batches, it has no such cache."""
    count, channels, height, width = features.shape
    at_once, rows = (1, max(1, _AT_ONCE // (channels * width))) if features.device.type == "cpu" else (references, height)
    for first in range(0, count, at_once):
        here = first % references
        for top in range(0, height, rows):
            yield slice(first, first + at_once), slice(here, here + at_once), slice(top, top + rows)
