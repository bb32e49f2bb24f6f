"""A distance between the deep features of two images, in the form of LPIPS.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, Eq. (1): features at
several depths, normalised to length 1 in each pixel; squared differences, weighted per channel; their spatial mean,
summed over depths.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .base import PerceptualMetric, ReferenceDistance
from .ops.chunks import ChunkedReferenceDistance
from .ops.tiles import distance_in_tiles
from .ops.unit_features import difference, unit_normalise

MIN_BRIGHT = 16  # that many reference images without a value below 0 are taken to be in a wrong range


class RangeCheck:
    """A check that reference images are in [-1,1], not [0,1] or [0,255].

    Values beyond [-1,1] are an error. A batch without a value below 0 may be bright images in [-1,1] or any in [0,1]:
    the first is a warning, MIN_BRIGHT images are an error. After the first value below 0 the check is off, because it
    makes a training step wait for the device.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.seen, self.is_done = 0, not enabled

    def __call__(self, images: Tensor) -> None:
        """Check images (B,3,H,W). Raises ValueError for a wrong range and for NaN."""
        if self.is_done:
            return
        low, high = (x.item() for x in images.aminmax())
        if low != low:  # aminmax returns NaN if any value is NaN
            raise ValueError("reference images with NaN; expected RGB in [-1,1], repair or leave out these images")
        if not -1.01 <= low <= high <= 1.01:
            scaled = "x / 127.5 - 1" if low >= 0 and high > 2 else "x.clamp(-1, 1)"
            raise ValueError(f"reference images from {low:.3g} to {high:.3g}; expected RGB in [-1,1], pass {scaled}")
        if low < 0:
            self.is_done = True
            return
        first, self.seen = self.seen == 0, self.seen + len(images)
        doubt = (
            f"{self.seen} reference images without a value below 0; expected RGB in [-1,1], pass 2 * x - 1 for [0,1]"
        )
        if self.seen >= MIN_BRIGHT:
            raise ValueError(doubt)
        if first:
            warnings.warn(doubt, stacklevel=3)


class DeepDistance(PerceptualMetric):
    """The distance of a frozen backbone's features; forward(a, b), (B,3,H,W) RGB in [-1,1] -> (B,).

    Args:
        backbone: images (N,3,H,W) -> an iterator over features (N,C_i,H_i,W_i), shallow first, with the grids and
            receptive field that `ops/tiles.py` assumes.
        channel_weights: for each of them, C_i weights >= 0.
        name, min_size: as in PerceptualMetric.
        pixel_bytes: peak bytes of activations per pixel of an image, if a gradient or features are needed (those of a
            reference or tile), and if neither is.
        memory: the most bytes of activations; more images are processed in chunks, see `with_reference`.
        check_range: check that references are in [-1,1], see `RangeCheck`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channel_weights: Iterable[Tensor],
        name: str,
        min_size: int,
        pixel_bytes: tuple[int, int],
        memory: int = 4 << 30,
        check_range: bool = True,
    ) -> None:
        super().__init__(name, min_size)
        self.backbone = backbone
        self.chunk_pixels = memory // pixel_bytes[0], memory // pixel_bytes[1]
        for i, weight in enumerate(channel_weights):
            self.register_buffer(f"weight{i}", weight.detach().reshape(-1, 1, 1))
        self.check_range = RangeCheck(check_range)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) -> the features of every depth, unit-normalised, float32, shallow first."""
        return [unit_normalise(f) for f in self.backbone(images)]

    def map(self, depth: int, features: Tensor, reference: Tensor) -> Tensor:
        """Features (...,C,H,W) of image and reference at a depth -> weighted squared differences (...,H,W)."""
        return ((features - reference).square() * self.get_buffer(f"weight{depth}")).sum(dim=-3)

    def maps(self, features: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
        """The `map` of every depth, shallow first."""
        return [self.map(i, f, r) for i, (f, r) in enumerate(zip(features, reference))]

    def compare(self, images: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Images (N,3,H,W) and the features of B references, N a multiple of B -> distances (N,).

        Without a gradient, the features of each depth are freed before those of the next are computed.
        """
        total = images.new_zeros(())
        for i, features in enumerate(self.backbone(images)):
            total = total + difference(features, reference[i], self.get_buffer(f"weight{i}").flatten())
        return total

    def with_reference(self, reference: Tensor) -> ReferenceDistance:
        """Return a function that maps images (...,B,3,H,W) to distances (...,B) to reference (B,3,H,W).

        The reference's features are computed here, once, without a gradient. Images pass the backbone together if they
        fit the memory, else in chunks; the distances are once differentiable. If this is called under no_grad and a
        single image does not fit, images are processed in tiles instead: each call then computes the reference's
        features again, and its distances have no gradient. Raises ValueError if the reference is not in [-1,1].
        """
        self.check_range(reference)
        if reference[0, 0].numel() > self.chunk_pixels[0] and not torch.is_grad_enabled():
            return TiledReferenceDistance(self, reference)
        return ChunkedReferenceDistance(reference, self.features, self.compare, self.chunk_pixels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.with_reference(b)(a)


class TiledReferenceDistance(ReferenceDistance):
    """The distance to references too large for the metric's memory, in tiles, without a gradient."""

    def __init__(self, metric: DeepDistance, reference: Tensor) -> None:
        super().__init__(metric.compare, [reference])
        self.metric = metric

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = self.metric.chunk_pixels[0]
        pairs = zip(images.flatten(0, -4), itertools.cycle(self.prepared[0]))
        each = [distance_in_tiles(self._maps, a[None], b[None], pixels) for a, b in pairs]
        return torch.cat(each).reshape(images.shape[:-3])

    def _maps(self, a: Tensor, b: Tensor) -> Iterator[Tensor]:
        """Yield the map of every depth for a tile of an image and of its reference."""
        backbone = self.metric.backbone
        for i, (features, reference) in enumerate(zip(backbone(a), backbone(b))):
            yield self.metric.map(i, unit_normalise(features), unit_normalise(reference))
