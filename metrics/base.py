"""The interface of the perceptual metrics and judges, for evaluations and TLW's weight criterion.

A new metric is one file with a subclass of PerceptualMetric, and its entry in OTHER_METRICS (metrics/judges.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class ReferenceDistance:
    """The distances of images (...,B,3,H,W) to the same B references -> (...,B).

    Args:
        compare: images (N,3,H,W) and `prepared` -> (N,); N is a multiple of B, image i has reference i modulo B.
        prepared: tensors (B,...) computed from the references once, such as their features.
    """

    def __init__(self, compare: Callable[[Tensor, Sequence[Tensor]], Tensor], prepared: Sequence[Tensor]) -> None:
        self.compare, self.prepared = compare, prepared

    @property
    def nbytes(self) -> int:
        """Bytes of `prepared`."""
        return sum(x.nbytes for x in self.prepared)

    def __call__(self, images: Tensor) -> Tensor:
        return self.compare(images.flatten(0, -4), self.prepared).reshape(images.shape[:-3])


class PerceptualMetric(nn.Module, ABC):
    """Base class of metrics: a, b (B,3,H,W), RGB in [-1,1] -> distances (B,), lower if closer.

    A judge is a metric with a gradient with respect to a and without trainable parameters. A subclass calls this
    constructor and implements forward; also with_reference, if b's features can be computed once for many a.

    Args:
        name: its name in tables; in lower case its name in METRICS (up to the affixes that judges.word_of removes).
        min_size: the smallest height and width of an image.
    """

    def __init__(self, name: str, min_size: int = 1) -> None:
        super().__init__()
        self.name, self.min_size = name, min_size

    @abstractmethod
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances (B,) of a to b, both (B,3,H,W) in [-1,1]."""

    def with_reference(self, reference: Tensor) -> ReferenceDistance:
        """Return a function that maps images (...,B,3,H,W) to distances (...,B) to reference (B,3,H,W)."""

        def compare(images: Tensor, references: Sequence[Tensor]) -> Tensor:
            return self(images, references[0].repeat(len(images) // len(references[0]), 1, 1, 1))

        return ReferenceDistance(compare, [reference])


@torch.no_grad()
def check_metric(metric: nn.Module, name: str) -> PerceptualMetric:
    """Return metric if it is a PerceptualMetric that returns distances (B,); else raise ValueError.

    name: its name in METRICS or JUDGES, for the error.
    """
    wrong = f"metric {name} is a {type(metric).__name__}"
    if not isinstance(metric, PerceptualMetric):
        raise ValueError(f"{wrong}; expected a subclass of PerceptualMetric, see metrics/base.py")
    black = torch.full((2, 3, metric.min_size, metric.min_size), -1.0)
    shape = tuple(metric(black, black).shape)
    if shape != (2,):
        raise ValueError(f"{wrong} that gives distances of shape {shape} for a batch of 2 images; expected (2,)")
    return metric
