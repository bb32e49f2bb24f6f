"""Distances of many images in chunks that fit the memory: cat([compare(chunk) for chunk in chunks]).

Each distance depends on its own image only, so its gradient can be computed in the forward pass: a chunk's activations
are freed before the next chunk's are computed, and nothing is computed twice.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..base import ReferenceDistance


class ChunkedReferenceDistance(ReferenceDistance):
    """A ReferenceDistance in chunks of at most chunk_pixels, but at least one image; once differentiable.

    Args:
        reference: (B,3,H,W).
        prepare: images (N,3,H,W) -> tensors (N,...); called here on the reference, without a gradient.
        compare: as in ReferenceDistance.
        chunk_pixels: the limit in `prepare` and with a gradient, and the limit without one.
    """

    def __init__(
        self,
        reference: Tensor,
        prepare: Callable[[Tensor], Sequence[Tensor]],
        compare: Callable[[Tensor, Sequence[Tensor]], Tensor],
        chunk_pixels: tuple[int, int],
    ) -> None:
        pixels = reference[0, 0].numel()
        self.count = len(reference)
        self.with_gradient, self.without_gradient = (max(1, most // pixels) for most in chunk_pixels)
        with torch.no_grad():
            parts = [prepare(part) for part in reference.split(self.with_gradient)]
            prepared = [torch.cat(some) for some in zip(*parts)] if len(parts) > 1 else parts[0]
            super().__init__(compare, prepared)

    def __call__(self, images: Tensor) -> Tensor:
        flat = images.flatten(0, -4)
        needs_grad = torch.is_grad_enabled() and flat.requires_grad
        at_once = self.with_gradient if needs_grad else self.without_gradient
        return _Chunked.apply(flat, self._compare_chunk, at_once, needs_grad).reshape(images.shape[:-3])

    def _compare_chunk(self, chunk: Tensor, first: int) -> Tensor:
        """The distances of a chunk of the images that begins with image number `first`."""
        if len(chunk) % self.count == 0 and first % self.count == 0:
            return self.compare(chunk, self.prepared)
        chosen = torch.arange(first, first + len(chunk), device=chunk.device) % self.count
        return self.compare(chunk, [x[chosen] for x in self.prepared])


class _Chunked(torch.autograd.Function):
    """Images (N,3,H,W) -> distances (N,), `at_once` images at a time; the forward computes the gradient."""

    @staticmethod
    def forward(ctx, images: Tensor, compare: Callable[[Tensor, int], Tensor], at_once: int, needs_grad: bool):
        values, grads = [], []
        for i, part in enumerate(images.split(at_once)):
            with torch.set_grad_enabled(needs_grad):
                part = part.detach().requires_grad_(needs_grad)
                value = compare(part, i * at_once)
                values.append(value.detach())
                if needs_grad:
                    with torch.autocast(part.device.type, enabled=False):
                        value.sum().backward()  # the backbone is frozen: only the images get a gradient
                    grads.append(part.grad)
        if needs_grad:
            ctx.save_for_backward(torch.cat(grads))
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        (grads,) = ctx.saved_tensors
        return gradient[:, None, None, None] * grads, None, None, None
