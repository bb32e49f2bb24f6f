"""A distance between the deep features of two images, in the form of LPIPS; what its backbones have in common.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, Eq. (1): features
at several depths, of length 1 in every pixel, squared differences weighted per channel, spatial mean, sum over depths.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .ops.tiles import distance_in_tiles
from .ops.unit_features import difference, unit_normalise

CERTAIN = 16  # reference images without a pixel below 0 until their range is called wrong


class RangeCheck:
    """Stops whoever feeds [0,1] or [0,255] where [-1,1] is expected: looks at reference images until one is dark.

    Values beyond [-1,1] are an error at once. Bright images in [-1,1] look like images in [0,1], so that only
    CERTAIN of them in a row are an error; a first one is a warning. From the first pixel below 0 on nothing is
    looked at any more: no run waits for the device in its steps.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.seen, self.settled = 0, not enabled

    def __call__(self, images: Tensor) -> None:
        """images (B,3,H,W). Raises ValueError."""
        if self.settled:
            return
        low, high = (x.item() for x in images.aminmax())
        if low != low:  # aminmax hands on a single NaN
            raise ValueError("reference images with NaN; expected RGB in [-1,1], mend or leave out these images")
        if not -1.01 <= low <= high <= 1.01:
            scaled = "x / 127.5 - 1" if low >= 0 and high > 2 else "x.clamp(-1, 1)"
            raise ValueError(f"reference images from {low:.3g} to {high:.3g}; expected RGB in [-1,1], pass {scaled}")
        if low < 0:
            self.settled = True
            return
        first, self.seen = self.seen == 0, self.seen + len(images)
        doubt = (
            f"{self.seen} reference images without a value below 0; expected RGB in [-1,1], pass 2 * x - 1 for [0,1]"
        )
        if self.seen >= CERTAIN:
            raise ValueError(doubt)
        if first:
            warnings.warn(doubt, stacklevel=3)


class ChunkedDistance(torch.autograd.Function):
    """Distances of images (N,3,H,W) -> (N,), `at_once` at a time, each chunk's gradient computed right after it.

    A distance depends on its image alone, so that its gradient can be had before anyone asks for it: then a chunk's
    activations are gone before the next one's are made, and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx, images: Tensor, distance: Callable[[Tensor, int], Tensor], at_once: int, needs_grad: bool):
        """distance(part, first): the distances of the images from number `first` on."""
        values, grads = [], []
        for i, part in enumerate(images.split(at_once)):
            with torch.set_grad_enabled(needs_grad):
                part = part.detach().requires_grad_(needs_grad)
                value = distance(part, i * at_once)
                values.append(value.detach())
                if needs_grad:
                    with torch.autocast(part.device.type, enabled=False):
                        value.sum().backward()  # reaches the images alone: the backbone is frozen
                    grads.append(part.grad)
        if needs_grad:
            ctx.save_for_backward(torch.cat(grads))
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        (grads,) = ctx.saved_tensors
        return gradient[:, None, None, None] * grads, None, None, None


def distance_to(
    reference: Tensor,
    prepare: Callable[[Tensor], list[Tensor]],
    compare: Callable[[Tensor, list[Tensor]], Tensor],
    chunk_pixels: tuple[int, int],
) -> Callable[[Tensor], Tensor]:
    """The distance to reference (B,3,H,W): a function of images (...,B,3,H,W) -> (...,B), once differentiable.

    prepare: images (N,3,H,W) -> tensors (N,...), done here once for the reference, without a gradient. compare: images
    (N,3,H,W) and what was prepared of B references, N a multiple of B -> (N,). Both are given as many images at a time
    as have chunk_pixels, at least one: the first number for prepare and where a gradient follows, the second where none
    does. The function's `nbytes` is what it holds.
    """
    count = len(reference)
    with_gradient, without = (max(1, pixels // reference[0, 0].numel()) for pixels in chunk_pixels)
    with torch.no_grad():
        parts = zip(*(prepare(part) for part in reference.split(with_gradient)))
        prepared = [torch.cat(some) if len(some) > 1 else some[0] for some in parts]

    def compare_chunk(part: Tensor, first: int) -> Tensor:
        if len(part) % count == 0 and first % count == 0:
            return compare(part, prepared)
        chosen = torch.arange(first, first + len(part), device=part.device) % count
        return compare(part, [x[chosen] for x in prepared])

    def distance(images: Tensor) -> Tensor:
        flat = images.flatten(0, -4)
        needs_grad = torch.is_grad_enabled() and flat.requires_grad
        at_once = with_gradient if needs_grad else without
        return ChunkedDistance.apply(flat, compare_chunk, at_once, needs_grad).reshape(images.shape[:-3])

    distance.nbytes = sum(x.nbytes for x in prepared)
    return distance


class DeepDistance(nn.Module):
    """The distance of `backbone`'s features, frozen; forward(a, b), (B,3,H,W) RGB in [-1,1] -> (B,).

    backbone: images (N,3,H,W) -> features (N,C_i,H_i,W_i) one after another, shallow first. channel_weights: C_i
    weights >= 0 for each of them. name: as metric; min_size: the least height and width that the backbone's pooling leaves something of.
    pixel_bytes: activations that one image's pixel holds at the peak, in bytes: where a gradient follows or features are
    kept whole (a reference's, a tile's), and where neither is so, which is less.
    check_range: whether references are checked to be in [-1,1] (see `RangeCheck`).
    memory: what the activations may take in bytes; images beyond it are done in chunks (see `with_reference`). The features
    of backbones lie and reach as `in_tiles` says.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channel_weights: Sequence[Tensor],
        name: str,
        min_size: int,
        pixel_bytes: tuple[int, int],
        memory: int = 4 << 30,
        check_range: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.name, self.min_size = backbone, name, min_size
        self.chunk_pixels = tuple(memory // needed for needed in pixel_bytes)
        for i, weight in enumerate(channel_weights):
            self.register_buffer(f"weight{i}", weight.detach().reshape(-1, 1, 1))
        self.check_range = RangeCheck(check_range)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) -> unit-normalised features of every depth, shallow first, float32."""
        return [unit_normalise(f) for f in self.backbone(images)]

    def map(self, depth: int, features: Tensor, reference: Tensor) -> Tensor:
        """Features (...,C,H,W) of a depth, the reference's to broadcast -> weighted squared differences (...,H,W)."""
        return ((features - reference).square() * getattr(self, f"weight{depth}")).sum(dim=-3)

    def maps(self, features: list[Tensor], reference: list[Tensor]) -> list[Tensor]:
        """The map of every depth."""
        return [self.map(i, f, r) for i, (f, r) in enumerate(zip(features, reference))]

    def distance(self, images: Tensor, reference: list[Tensor]) -> Tensor:
        """Images (N,3,H,W) and the features of B references, N a multiple of B -> (N,).

        Depth by depth: without a gradient, the features of one are gone before the next one's are made.
        """
        total = 0
        for i, features in enumerate(self.backbone(images)):
            total = total + difference(features, reference[i], getattr(self, f"weight{i}").flatten())
        return total

    def with_reference(self, reference: Tensor) -> Callable[[Tensor], Tensor]:
        """The distance to reference (B,3,H,W): a function of images (...,B,3,H,W) -> (...,B), once differentiable.

        The reference's features are computed here, once, without a gradient. All images go through the backbone at
        once where they fit the memory, else in chunks. Called under no_grad, as for a metric, it takes images of which
        a single one does not fit in tiles, at the price of their overlap and of the reference's features anew; the
        distances have no gradient then. The function's `nbytes` is what it holds. Raises ValueError where the
        reference's values are not in [-1,1] (see `RangeCheck`).
        """
        self.check_range(reference)
        if reference[0, 0].numel() > self.chunk_pixels[0] and not torch.is_grad_enabled():
            return self.with_large_reference(reference)
        return distance_to(reference, self.features, self.distance, self.chunk_pixels)

    def with_large_reference(self, reference: Tensor) -> Callable[[Tensor], Tensor]:
        """What `with_reference` returns under no_grad where a reference alone does not fit the memory."""

        def maps(a: Tensor, b: Tensor) -> Iterator[Tensor]:
            for i, features in enumerate(zip(self.backbone(a), self.backbone(b))):
                yield self.map(i, *map(unit_normalise, features))

        def distance(images: Tensor) -> Tensor:
            with torch.no_grad():
                pairs = zip(images.flatten(0, -4), itertools.cycle(reference))
                each = [distance_in_tiles(maps, a[None], b[None], self.chunk_pixels[0]) for a, b in pairs]
            return torch.cat(each).reshape(images.shape[:-3])

        distance.nbytes = reference.nbytes
        return distance

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.with_reference(b)(a)
