"""The contract of the perceptual metrics and judges: what an evaluation and the criterion of TLW need.

A new metric is one file with a subclass of PerceptualMetric, and its entry in OTHER_METRICS (metrics/judges.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ReferenceDistance:
    """The distance of images to B references whose part is computed once: images (...,B,3,H,W) -> (...,B).

    Args:
        compare: images (N,3,H,W) and `prepared`, N a multiple of B -> (N,).
        prepared: what was computed of the references, tensors (B,...).
    """

    def __init__(self, compare: Callable[[Tensor, Sequence[Tensor]], Tensor], prepared: Sequence[Tensor]) -> None:
        self.compare, self.prepared = compare, prepared

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(x.nbytes for x in self.prepared)

    def __call__(self, images: Tensor) -> Tensor:
        return self.compare(images.flatten(0, -4), self.prepared).reshape(images.shape[:-3])


class PerceptualMetric(nn.Module, ABC):
    """Base class of metrics: a, b (B,3,H,W), RGB in [-1,1] -> distances (B,), lower if closer.

    A judge is a metric with a gradient with respect to a; nothing else of it may learn. A subclass calls this
    constructor and implements forward; with_reference too if some of b's part can be computed once.

    Args:
        name: what tables call it; in lower case its name in METRICS ("1-MS-SSIM" and "LPIPS-alex" are so by word_of).
        min_size: least height and width of an image.
    """

    def __init__(self, name: str, min_size: int = 1) -> None:
        super().__init__()
        self.name, self.min_size = name, min_size

    @abstractmethod
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances (B,) of a to b, both (B,3,H,W) in [-1,1]."""

    def with_reference(self, reference: Tensor) -> ReferenceDistance:
        """Return the distance to reference (B,3,H,W): a function of images (...,B,3,H,W) -> (...,B)."""

        def compare(images: Tensor, references: Sequence[Tensor]) -> Tensor:
            return self(images, references[0].repeat(len(images) // len(references[0]), 1, 1, 1))

        return ReferenceDistance(compare, [reference])


@torch.no_grad()
def check_metric(metric: nn.Module, name: str) -> PerceptualMetric:
    """Return metric, the entry `name` of METRICS or JUDGES; raise ValueError if it breaks the contract."""
    wrong = f"metric {name} is a {type(metric).__name__}"
    if not isinstance(metric, PerceptualMetric):
        raise ValueError(f"{wrong}; expected a subclass of PerceptualMetric, see metrics/base.py")
    black = torch.full((2, 3, metric.min_size, metric.min_size), -1.0)
    shape = tuple(metric(black, black).shape)
    if shape != (2,):
        raise ValueError(f"{wrong} that gives distances of shape {shape} for a batch of 2 images; expected (2,)")
    return metric
