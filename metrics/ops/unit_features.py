"""LPIPS's Eq. (1): d = mean_hw sum_c weight_c (u - r)^2, u and r features of length 1 in each pixel.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018. Plain torch code
reads and writes all features about ten times, and more often for the gradient. On the CPU `difference` takes a few rows
at a time through all operations while they are in the cache.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

_TINY = 1e-20  # negligible beside any square sum of features but 0


def unit_normalise(features: Tensor) -> Tensor:
    """Features (N,C,H,W) of any dtype -> float32 of length 1 along C.

    The square root's argument stays above 0, so that pixels whose features are all 0 have a finite gradient.
    """
    features = features.float()
    return features * (features.square().sum(dim=1, keepdim=True) + _TINY).rsqrt()


def difference(features: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """Spatial mean of sum_c weight_c (unit_normalise(features) - reference)^2 -> (N,), float32.

    Args:
        features: (N,C,H,W) of any dtype.
        reference: (B,C,H,W), normalised, N a multiple of B; image i has reference i modulo B.
        weight: (C,), at least 0.

    Once differentiable, in the features only. `DeepDistance.map` is the same in plain torch operations, without the
    mean, for maps and second derivatives.
    """
    return _Difference.apply(features, reference, weight, torch.is_grad_enabled() and features.requires_grad)


class _Difference(torch.autograd.Function):
    """`difference`, whose forward also computes the gradient if it is needed."""

    @staticmethod
    def forward(ctx, features: Tensor, reference: Tensor, weight: Tensor, needs_grad: bool) -> Tensor:
        pixels = features.shape[2] * features.shape[3]
        totals = torch.zeros(len(features) // len(reference), len(reference), device=features.device)
        grads = torch.empty_like(features) if needs_grad else None
        batches = features.unflatten(0, (-1, len(reference)))
        for sets, images, rows in _parts(batches):
            values = batches[sets, images, :, rows].movedim(2, -1).float()
            length = (values.square().sum(dim=-1, keepdim=True) + _TINY).rsqrt()
            unit = values * length
            gap = unit - reference[images, :, rows].movedim(1, -1)
            weighted = gap * weight
            totals[sets, images] += gap.mul_(weighted).sum(dim=(2, 3, 4))
            if grads is not None:
                along = (unit * weighted).sum(dim=-1, keepdim=True)
                slope = weighted.sub_(unit.mul_(along)).mul_(length.mul_(2 / pixels))
                grads.view_as(batches)[sets, images, :, rows] = slope.movedim(-1, 2)
        ctx.save_for_backward(grads)
        return totals.flatten() / pixels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        (grads,) = ctx.saved_tensors
        return (gradient[:, None, None, None] * grads).to(grads.dtype), None, None, None


def _room(device: torch.device) -> int:
    """The number of features to process at a time; on CPUs 32768 per thread, at least 65536."""
    return max(1 << 16, torch.get_num_threads() << 15) if device.type == "cpu" else 1 << 24


def _parts(batches: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices of sets, images and rows of batches (S,B,C,H,W) to process at a time."""
    sets, images, channels, height, width = batches.shape
    room, row = _room(batches.device), channels * width
    steps = [max(1, room // size) for size in (images * height * row, height * row, row)]
    for starts in itertools.product(*(range(0, size, step) for size, step in zip((sets, images, height), steps))):
        some, these, rows = (slice(start, start + step) for start, step in zip(starts, steps))
        yield some, these, rows
