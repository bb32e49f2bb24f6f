"""net(lr) on images of any size in limited memory: tile by tile, the same up to rounding.

Most of the memory goes to the head, which has scale^2 times the body's pixels. Its receptive radius is small, so it can
run in overlapping tiles after any body. Purely convolutional bodies can run in tiles too, with their larger receptive
radius. Bodies that average over the whole image (RCAN, HAT) cannot: they run on the whole image, or in cross-faded
tiles (BlendedTiles), with a different result.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HEAD_RADIUS = 2  # receptive radius of forward_head, pixels of LR
SAMPLE = 32  # side of the image on which a network's memory is measured
# Convolutions reorder their operands, and freed memory is not reused at once: measured by benchmarks.validation.
_SAFETY = 1.5


class NotCut(UserWarning):
    """Warning: a network runs on a whole image although it needs more memory than allowed."""


class TiledUpscaler:
    """lr (B,3,h,w) -> net(lr) (B,3,s*h,s*w), in tiles if its activations would take more than `memory`.

    The network runs on the whole image if that fits; else only its head runs in tiles; else all of it does. A body that
    neither fits nor can run in tiles runs on the whole image, with a warning (NotCut). The network runs in eval mode,
    and its mode is restored.

    Args:
        net: a network with `scale`, an SRNetwork or another.
        memory: bytes of activations.
        finish: a function of each part of sr, pixel by pixel, (B,3,H,W) -> (B,C,H,W) of any dtype, such as rounding to
            8 bits: then no whole image in float32 takes memory.
    """

    def __init__(self, net: nn.Module, memory: int, finish: Callable[[Tensor], Tensor] = lambda sr: sr) -> None:
        self.net: Any = net
        self.memory, self.finish = memory, finish
        self.staged = has_stages(net)
        self.receptive_radius = getattr(net, "receptive_radius", None)
        self.whole_cost = self.body_cost = self.tail_cost = 0.0

    def __call__(self, lr: Tensor) -> Tensor:
        training = self.net.training
        self.net.eval()
        try:
            return self._upscale(lr)
        finally:
            self.net.train(training)

    def _upscale(self, lr: Tensor) -> Tensor:
        pixels = lr.shape[0] * lr.shape[2] * lr.shape[3]
        if pixels > SAMPLE**2:
            self.whole_cost, self.body_cost, self.tail_cost = costs(self.net, lr)
        if pixels * self.whole_cost <= self.memory:
            return self.finish(self.net(lr))
        fits = self.staged and pixels * self.body_cost <= self.memory
        if not fits and self.receptive_radius is not None:
            return self._tiled(self.net, (lr,), self.receptive_radius, self.memory / self.whole_cost)
        if not fits:
            need = f"{pixels * (self.body_cost or self.whole_cost) / 2**20:.0f} MiB"
            inside = "it averages over the image" if self.staged else "how far it sees is not known"
            warnings.warn(
                f"{type(self.net).__name__} needs about {need} for {lr.shape[2]}x{lr.shape[3]} pixels, more than "
                f"{self.memory / 2**20:.0f}: {inside}, so it is not cut",
                NotCut,
                stacklevel=2,
            )
        if not self.staged:
            return self.finish(self.net(lr))
        features = self.net.forward_body(lr)
        extended = nn.functional.pad(lr, (0, features.shape[3] - lr.shape[3], 0, features.shape[2] - lr.shape[2]))
        left = max(self.memory - features.nbytes, self.memory // 8)
        sr = self._tiled(self.net.forward_head, (extended, features), HEAD_RADIUS, left / self.tail_cost)
        return sr[:, :, : lr.shape[2] * self.net.scale, : lr.shape[3] * self.net.scale]

    def _tiled(self, work: Callable, inputs: tuple[Tensor, ...], reach: int, pixels: float) -> Tensor:
        """work(*inputs) in tiles of about `pixels` pixels over the whole batch; inputs have lr's size."""
        batch, height, width = inputs[0].shape[0], *inputs[0].shape[2:]
        scale: int = self.net.scale
        sr: Any = None
        for rows, columns in tiles(height, width, int(pixels / batch), reach):
            part = self.finish(work(*(x[..., rows[0] : rows[3], columns[0] : columns[3]] for x in inputs)))
            if sr is None:
                sr = part.new_empty(*part.shape[:2], height * scale, width * scale)
            own_rows, own_columns = (slice(*((x - ends[0]) * scale for x in ends[1:3])) for ends in (rows, columns))
            there_rows, there_columns = (slice(*(x * scale for x in ends[1:3])) for ends in (rows, columns))
            sr[..., there_rows, there_columns] = part[..., own_rows, own_columns]
        return sr


class BlendedTiles:
    """lr (B,3,h,w) -> sr (B,3,s*h,s*w), float32, from square tiles that overlap and fade into one another.

    For networks that average over the whole image. Each tile has its own averages, so the result differs from that on
    the whole image, more so for smaller tiles. It is equal if the receptive radius is at most a quarter of the overlap.

    Args:
        upscale: a network, or a TiledUpscaler of one.
        tile: side of a tile in pixels of lr; ValueError if less than 2 * overlap + align.
        overlap: the least overlap of neighbours in pixels of lr. A tile's outer quarter, which its borders distort, is
            not used; over the middle half one tile fades into the next.
        align: tiles begin at multiples of it; an attention window's side keeps the image's windows.
    """

    def __init__(
        self, upscale: Callable[[Tensor], Tensor], scale: int, tile: int, overlap: int, align: int = 1
    ) -> None:
        if tile < 2 * overlap + align:
            raise ValueError(f"tile={tile}; expected {2 * overlap + align} or more, twice the overlap and {align}")
        self.upscale, self.scale, self.tile, self.overlap, self.align = upscale, scale, tile, overlap, align

    def __call__(self, lr: Tensor) -> Tensor:
        s, (height, width) = self.scale, lr.shape[2:]
        rows, columns = self.cuts(height), self.cuts(width)
        sr = lr.new_zeros(*lr.shape[:2], s * height, s * width, dtype=torch.float32)
        for top, bottom, down in rows:
            band = sr.new_zeros(*sr.shape[:2], s * (bottom - top), s * width)
            for left, right, across in columns:
                part = self.upscale(lr[..., top:bottom, left:right])
                band[..., s * left : s * right].lerp_(part.to(band), across.to(band))
            sr[..., s * top : s * bottom, :].lerp_(band, down[:, None].to(band))
        return sr

    def cuts(self, size: int) -> list[tuple[int, int, Tensor]]:
        """List (start, end, share) of each tile along one side; start and end are in pixels of lr.

        share (s*(end-start),) is the tile's weight against the tile before it; it rises from 0 to 1 over the middle
        half of their overlap.
        """
        if size <= self.tile:
            return [(0, size, torch.ones(size * self.scale))]
        steps = -(-(size - self.tile) // (self.tile - self.overlap - self.align + 1))
        starts = [i * (size - self.tile) // steps // self.align * self.align for i in range(steps + 1)]
        ends = [start + self.tile for start in starts[:-1]] + [size]
        shares = [torch.ones(self.tile * self.scale)]
        for start, end, before in zip(starts[1:], ends[1:], ends):
            x = (torch.arange((end - start) * self.scale) + 0.5) / self.scale / (before - start)
            shares.append((2 * x - 0.5).clamp(0, 1))
        return list(zip(starts, ends, shares))


def has_stages(net: nn.Module) -> bool:
    """True if net is an SRNetwork with features of lr's size: its head alone can run in tiles."""
    return getattr(net, "feature_scale", None) == 1


_COSTS: WeakKeyDictionary[nn.Module, dict[bool, tuple[float, float, float]]] = WeakKeyDictionary()


@torch.no_grad()
def costs(net: Any, like: Tensor) -> tuple[float, float, float]:
    """Bytes per pixel of lr that net, its body and its head take; the last two are 0 without stages.

    like: a tensor of lr's dtype and channels on net's device. Each network is measured once with and once without
    autocast, on a small image.
    """
    known = _COSTS.setdefault(net, {})
    autocast = torch.is_autocast_enabled(like.device.type)
    if autocast in known:
        return known[autocast]

    def count(work: Callable, *inputs: Tensor) -> tuple[float, Tensor]:
        with Widest() as widest:
            out = work(*inputs)
        return _SAFETY * widest.most / SAMPLE**2, out

    lr = like.new_zeros(1, like.shape[1], SAMPLE, SAMPLE)
    whole, body, tail = count(net, lr)[0], 0.0, 0.0
    if has_stages(net):
        body, features = count(net.forward_body, lr)
        tail, _ = count(net.forward_head, lr, features)
    known[autocast] = whole, body, tail
    return known[autocast]


class Widest(TorchDispatchMode):
    """A context that records in `most` the bytes that the largest operation inside it reads and writes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = {id(x): x.nbytes for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        self.most = max(self.most, sum(tensors.values()))
        return out


def tiles(height: int, width: int, pixels: int, reach: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield tiles that cover (height,width), each of about `pixels` pixels with its margins of `reach`.

    Yields (rows, columns), each (start, first, last, end): first to last is the tile's own part, start to end includes
    the margins. The own parts neither overlap nor leave gaps, and are no smaller than reach, except at the end.
    """
    across = min(width, max(int(pixels**0.5), 3 * reach, 1))
    down = min(height, max(pixels // across, 3 * reach, 1))

    def cuts(size: int, side: int) -> list[tuple[int, ...]]:
        if side >= size:
            return [(0, 0, size, size)]
        own = max(1, side - 2 * reach)
        return [
            (max(0, first - reach), first, min(size, first + own), min(size, first + own + reach))
            for first in range(0, size, own)
        ]

    for rows in cuts(height, down):
        for columns in cuts(width, across):
            yield rows, columns
