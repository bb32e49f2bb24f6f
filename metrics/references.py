"""Reference images, prepared once for all networks and epochs that are measured on them."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from .fidelity import Fidelity

KEPT_BYTES = 1 << 30  # limit for one data set; images beyond it are prepared again each time


class Reference(NamedTuple):
    """An lr (1,3,h,w), and the functions that measure PSNR, SSIM and metrics against its hr.

    border: the width in pixels of the border that the metrics ignore.
    """

    lr: Tensor
    fidelity: Fidelity
    distances: dict[str, Callable[[Tensor], Tensor]]
    border: int = 0

    @property
    def nbytes(self) -> int:
        return self.lr.nbytes + self.fidelity.nbytes + sum(distance.nbytes for distance in self.distances.values())

    def scores(self, sr: Tensor) -> dict[str, Tensor]:
        """The values (1,) of sr (1,3,H,W) by name."""
        scores = self.fidelity(sr)
        inside = as_rgb(without_border(sr, self.border))
        return scores | {name: distance(inside) for name, distance in self.distances.items()}


def as_rgb(image: Tensor) -> Tensor:
    """RGB images (B,3,H,W) unchanged; grey ones (B,1,H,W) with three equal channels."""
    return image.expand(-1, 3, -1, -1)


def without_border(image: Tensor, border: int) -> Tensor:
    """image (B,3,H,W) without `border` pixels at each side."""
    height, width = image.shape[-2:]
    return image[..., border : height - border, border : width - border]


def prepare(
    lr: Tensor, hr: Tensor, metrics: Mapping, shave: int, device, rgb: bool = False, border: int = 0
) -> Reference:
    """Prepare the reference of lr (3,h,w) and hr (3,H,W): everything that depends on hr alone.

    Args:
        shave: the width in pixels of the border that PSNR and SSIM ignore.
        rgb: measure PSNR and SSIM on RGB too.
        border: the width in pixels of the border that the metrics ignore.
    """
    lr, hr = (image[None].to(device) for image in (lr, hr))
    inside = as_rgb(without_border(hr, border))
    distances = {name: metric.with_reference(inside) for name, metric in metrics.items()}
    return Reference(lr, Fidelity(hr, shave, rgb), distances, border)


class References:
    """The reference images of one data set, for these metrics, shave and device."""

    def __init__(self, metrics: Mapping, shave: int, device) -> None:
        self.metrics, self.shave, self.device = dict(metrics), shave, torch.device(device)
        self.kept: dict[int, Reference] = {}
        self.left = KEPT_BYTES

    def matches(self, metrics: Mapping, shave: int, device) -> bool:
        """True if these references are for the same metrics, shave and device."""
        same = self.metrics.keys() == metrics.keys() and all(self.metrics[name] is metrics[name] for name in metrics)
        return same and (self.shave, self.device) == (shave, torch.device(device))

    def of(self, pairs) -> Iterator[Reference]:
        """Yield the reference of each pair, lr (3,h,w) and hr (3,H,W); the next is read meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            ahead = {}
            for i in range(len(pairs)):
                for j in range(i, min(i + 2, len(pairs))):
                    if j not in self.kept and j not in ahead:
                        ahead[j] = pool.submit(pairs.__getitem__, j)
                yield self.kept[i] if i in self.kept else self._prepare(i, ahead.pop(i).result())

    def _prepare(self, index: int, pair: tuple[Tensor, Tensor]) -> Reference:
        reference = prepare(*pair, self.metrics, self.shave, self.device)
        if reference.nbytes <= self.left:
            self.kept[index] = reference
            self.left -= reference.nbytes
        return reference


class ReferenceCache:
    """The references of the data set used last, for several networks or epochs measured on it."""

    def __init__(self) -> None:
        self.pairs, self.latest = None, None

    def references(self, pairs, metrics: Mapping, shave: int, device) -> Iterator[Reference]:
        """Iterate over the references of pairs, a sequence of lr (3,h,w) and hr (3,H,W)."""
        if self.latest is None or self.pairs is not pairs or not self.latest.matches(metrics, shave, device):
            self.pairs, self.latest = pairs, References(metrics, shave, device)
        return self.latest.of(pairs)
