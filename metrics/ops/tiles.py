"""Deep distances of images too large for the memory: the sum over depths of mean(map), tile by tile.

The result is the whole image's, up to rounding. A backbone's features have a receptive radius of at most REACH pixels,
and their grids coincide every ALIGNMENT pixels: in a tile that begins there and overlaps its neighbours by REACH, the
features of the tile's own part equal the whole image's.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

ALIGNMENT = 16  # pixels per feature at the deepest layer
REACH = 128  # pixels; the largest receptive radius is 104, SqueezeNet's fire9


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


def distance_in_tiles(
    maps: Callable[[Tensor, Tensor], Iterable[Tensor]], image: Tensor, reference: Tensor, pixels: int
) -> Tensor:
    """The distance (1,) of image to reference, both (1,3,H,W), in tiles.

    Args:
        maps: two tiles (1,3,h,w) -> the map (1,h_i,w_i) of every depth; the spatial means add up to the distance.
        pixels: the approximate size of a tile, whose sides are at least 3 REACH long.
    """
    height, width = image.shape[-2:]
    sums, counts = [], []
    across, down = math.ceil(width / ALIGNMENT), math.ceil(height / ALIGNMENT)
    for rows, columns in tiles(down, across, pixels // ALIGNMENT**2, REACH // ALIGNMENT):
        window = tuple(slice(ends[0] * ALIGNMENT, ends[3] * ALIGNMENT) for ends in (rows, columns))
        a, b = (x[..., *window] for x in (image, reference))
        for depth, values in enumerate(maps(a, b)):
            own = values[
                0, _own(rows, down, a.shape[-2], values.shape[-2]), _own(columns, across, a.shape[-1], values.shape[-1])
            ]
            if depth == len(sums):
                sums.append(values.new_zeros((), dtype=torch.float64))
                counts.append(0)
            sums[depth] += own.sum(dtype=torch.float64)
            counts[depth] += own.numel()
    return torch.stack([total / count for total, count in zip(sums, counts)]).sum().float()[None]


def _own(ends: tuple[int, ...], units: int, pixels: int, features: int) -> slice:
    """A tile's own features along an axis; ends: (start, first, last, end) in units of ALIGNMENT."""
    start, first, last, _ = ends
    each = ALIGNMENT // 2 ** round(math.log2(pixels / features))  # features per ALIGNMENT pixels
    return slice((first - start) * each, None if last == units else (last - start) * each)
