"""A distance between the deep features of two images, in the form of LPIPS.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, Eq. (1): features
at several depths, of length 1 in every pixel, squared differences weighted per channel, spatial mean, sum over depths.
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

MIN_BRIGHT = 16  # reference images in a row without a pixel below 0 before their range is called wrong


class RangeCheck:
    """Find reference images in [0,1] or [0,255] instead of [-1,1], until one with a pixel below 0 comes.

    Values beyond [-1,1] are an error at once. Bright images in [-1,1] look like images in [0,1]: a first one is a
    warning, MIN_BRIGHT of them in a row are an error. After the first pixel below 0 nothing is checked any more, so
    that a run does not wait for the device in its steps.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.seen, self.is_done = 0, not enabled

    def __call__(self, images: Tensor) -> None:
        """images (B,3,H,W). Raises ValueError."""
        if self.is_done:
            return
        low, high = (x.item() for x in images.aminmax())
        if low != low:  # a single NaN is enough for aminmax to return NaN
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
        backbone: images (N,3,H,W) -> features (N,C_i,H_i,W_i) one after another, shallow first. They lie and reach as
            `ops/tiles.py` says.
        channel_weights: C_i weights >= 0 for each of them.
        name: as metric.
        min_size: the least height and width that the backbone's pooling leaves something of.
        pixel_bytes: bytes of activations at the peak for each pixel of an image: if a gradient follows or features are
            kept (a reference's, a tile's), and if neither is so, which is less.
        memory: bytes that the activations may take; images beyond it are done in chunks, see `with_reference`.
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
        """(N,3,H,W) -> unit-normalised features of every depth, shallow first, float32."""
        return [unit_normalise(f) for f in self.backbone(images)]

    def map(self, depth: int, features: Tensor, reference: Tensor) -> Tensor:
        """Features (...,C,H,W) of a depth, and the reference's -> weighted squared differences (...,H,W)."""
        return ((features - reference).square() * self.get_buffer(f"weight{depth}")).sum(dim=-3)

    def maps(self, features: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
        """The map of every depth."""
        return [self.map(i, f, r) for i, (f, r) in enumerate(zip(features, reference))]

    def compare(self, images: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Images (N,3,H,W) and the features of B references, N a multiple of B -> distances (N,).

        Depth by depth: without a gradient, the features of one are gone before the next one's are made.
        """
        total = images.new_zeros(())
        for i, features in enumerate(self.backbone(images)):
            total = total + difference(features, reference[i], self.get_buffer(f"weight{i}").flatten())
        return total

    def with_reference(self, reference: Tensor) -> ReferenceDistance:
        """Return the distance to reference (B,3,H,W), a function of images (...,B,3,H,W) -> (...,B).

        The reference's features are computed here, once, without a gradient. All images go through the backbone at
        once if they fit the memory, else in chunks; the distances are once differentiable. Under no_grad, as for a
        metric, images of which a single one does not fit go in tiles, which computes the reference's features again
        each time; the distances have no gradient then. Raises ValueError if the reference is not in [-1,1].
        """
        self.check_range(reference)
        if reference[0, 0].numel() > self.chunk_pixels[0] and not torch.is_grad_enabled():
            return TiledReferenceDistance(self, reference)
        return ChunkedReferenceDistance(reference, self.features, self.compare, self.chunk_pixels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.with_reference(b)(a)


class TiledReferenceDistance(ReferenceDistance):
    """The distance to a reference too large for the metric's memory, in tiles; without a gradient."""

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
        """The map of every depth, one after another, of a tile of an image and of its reference."""
        backbone = self.metric.backbone
        for i, (features, reference) in enumerate(zip(backbone(a), backbone(b))):
            yield self.metric.map(i, unit_normalise(features), unit_normalise(reference))
