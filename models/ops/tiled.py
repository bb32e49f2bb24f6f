"""Inference on images of any size within a bound of memory, with the whole image's result to fp32's rounding.

What takes the memory is the reconstruction: it has scale^2 times the body's pixels. It sees no further than a few
pixels, so that it can be done in tiles that overlap by as much, whatever the body is. Bodies of convolutions alone can
be tiled too, by their larger `reach`; those that average over the whole image (RCAN, HAT) cannot, and run whole.
"""

import warnings
from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HEAD_RADIUS = 2  # pixels of LR
SAMPLE = 32  # side of the image on which a network's memory is counted
# Convolutions reorder their operands, and freed memory is not at once free: measured by benchmarks.validation.
_SAFETY = 1.5


class TiledUpscaler:
    """lr (B,3,h,w) -> net(lr) (B,3,s*h,s*w) with at most `memory` bytes of activations where that can be had.

    The network runs whole where it fits; else its body whole and its reconstruction in tiles; else both in tiles. A
    body that does neither fit nor allow for tiles runs whole, with a warning. The network runs in eval mode; its mode
    is restored.
    """

    def __init__(self, net: nn.Module, memory: int) -> None:
        self.net, self.memory = net, memory
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
        if pixels > SAMPLE**2 and (self.staged or self.receptive_radius is not None):
            self.whole_cost, self.body_cost, self.tail_cost = costs(self.net, lr)
        if pixels * self.whole_cost <= self.memory:
            return self.net(lr)
        fits = self.staged and pixels * self.body_cost <= self.memory
        if not fits and self.receptive_radius is not None:
            return self._tiled(self.net, (lr,), self.receptive_radius, self.memory / self.whole_cost)
        if not fits:
            need = f"{pixels * self.body_cost / 2**20:.0f} MiB"
            warnings.warn(
                f"{type(self.net).__name__} needs about {need} for {lr.shape[2]}x{lr.shape[3]} pixels, which "
                f"are more than {self.memory / 2**20:.0f}: it averages over the image, and is not cut",
                stacklevel=2,
            )
        features = self.net.forward_body(lr)
        extended = nn.functional.pad(lr, (0, features.shape[3] - lr.shape[3], 0, features.shape[2] - lr.shape[2]))
        left = max(self.memory - features.nbytes, self.memory // 8)
        sr = self._tiled(self.net.forward_head, (extended, features), HEAD_RADIUS, left / self.tail_cost)
        return sr[:, :, : lr.shape[2] * self.net.scale, : lr.shape[3] * self.net.scale]

    def _tiled(self, work: Callable, inputs: tuple[Tensor, ...], reach: int, pixels: float) -> Tensor:
        """work(*inputs), lr the first of them, in tiles of about `pixels` over the whole batch."""
        batch, _, height, width = inputs[0].shape
        scale = self.net.scale
        sr = inputs[0].new_empty(batch, 3, height * scale, width * scale)
        for rows, columns in tiles(height, width, int(pixels / batch), reach):
            part = work(*(x[..., rows[0] : rows[3], columns[0] : columns[3]] for x in inputs))
            own_rows, own_columns = (slice(*((x - ends[0]) * scale for x in ends[1:3])) for ends in (rows, columns))
            there_rows, there_columns = (slice(*(x * scale for x in ends[1:3])) for ends in (rows, columns))
            sr[..., there_rows, there_columns] = part[..., own_rows, own_columns]
        return sr


def has_stages(net: nn.Module) -> bool:
    """Whether net is an SRNetwork whose features are as large as lr, so that its head alone can go in tiles."""
    return getattr(net, "feature_scale", None) == 1


_COSTS: WeakKeyDictionary[nn.Module, dict[bool, tuple[float, float, float]]] = WeakKeyDictionary()


@torch.no_grad()
def costs(net: nn.Module, like: Tensor) -> tuple[float, float, float]:
    """Bytes per pixel of lr that net, its body and its reconstruction take; like: of lr's dtype, on net's device.

    Of a network without stages, 0 for the last two. Counted once for each network, with and without
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

    lr = like.new_zeros(1, 3, SAMPLE, SAMPLE)
    whole, body, tail = count(net, lr)[0], 0.0, 0.0
    if has_stages(net):
        body, features = count(net.forward_body, lr)
        tail, _ = count(net.forward_head, lr, features)
    known[autocast] = whole, body, tail
    return known[autocast]


class Widest(TorchDispatchMode):
    """While it is on, `most` becomes the bytes of the tensors that the widest operation reads and writes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = {id(x): x.nbytes for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        self.most = max(self.most, sum(tensors.values()))
        return out


def tiles(height: int, width: int, pixels: int, reach: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Tiles that cover (height,width), each of about `pixels` with its margins of `reach`, and no less than reach inside.

    Yields (rows, columns), each (start, first, last, end): first to last is the tile's own part, start to end what it
    has to see. The own parts neither overlap nor leave a gap.
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
