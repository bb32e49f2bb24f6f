"""The target of one training step: reference images and the distances to them."""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

Judge = Callable[[Tensor, Tensor], Tensor]  # (B,3,H,W), (B,3,H,W) in [-1,1] -> distances (B,)
Distance = Callable[[Tensor], Tensor]  # images (...,B,3,H,W) in [-1,1] -> distances (...,B) of each to its hr


class Target(NamedTuple):
    """Reference images and the distances to them, shared by all losses and samples of a step.

    Grey images (...,1,H,W) are shown to judge and extractors with three equal channels.

    hr: (B,3,H,W) in [-1,1].
    distance: the judge's distance to hr, or None. Judges with `with_reference` compute hr's features once, at the first
        call, because not every step calls the judge.
    lr: (B,3,h,w) in [-1,1], the SR network's input; UDL's second stage needs it.
    features: the feature extractors' distances to hr by name, also prepared at the first call.
    """

    hr: Tensor
    distance: Distance | None = None
    lr: Tensor | None = None
    features: Mapping[str, Distance] = MappingProxyType({})

    @classmethod
    def judged_by(
        cls, judge: Judge | None, hr: Tensor, lr: Tensor | None = None, extractors: Mapping | None = None
    ) -> "Target":
        """Build the target of one step.

        Args:
            judge: a PerceptualMetric, any callable judge(a, b) -> (B,) or (B,1,1,1), or None.
            hr: (B,3,H,W) in [-1,1].
            lr: (B,3,h,w) in [-1,1], for losses that need it.
            extractors: PerceptualMetrics by name, for the perceptual losses.
        """
        features = {name: _at_first_call(extractor, hr) for name, extractor in (extractors or {}).items()}
        if judge is None:
            return cls(hr, None, lr, features)
        if hasattr(judge, "with_reference"):
            return cls(hr, _at_first_call(judge, hr), lr, features)

        def distance(images: Tensor) -> Tensor:
            reference = as_rgb(hr.expand_as(images)).flatten(0, -4)
            return judge(as_rgb(images).flatten(0, -4), reference).reshape(images.shape[:-3])

        return cls(hr, distance, lr, features)


def _at_first_call(judge, hr: Tensor) -> Distance:
    """The distance judge.with_reference(hr), prepared at its first call."""

    @cache
    def distance() -> Distance:
        with torch.enable_grad():  # the first call may be under no_grad, and a later one need a gradient
            return judge.with_reference(as_rgb(hr))

    return lambda images: distance()(as_rgb(images))


def as_rgb(images: Tensor) -> Tensor:
    """Images (...,3,H,W) as they are; grey ones (...,1,H,W) with three equal channels."""
    return images.expand(*images.shape[:-3], 3, -1, -1) if images.shape[-3] == 1 else images
