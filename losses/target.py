"""What every loss of one training iteration is measured against."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

Judge = Callable[[Tensor, Tensor], Tensor]  # (B,3,H,W), (B,3,H,W) in [-1,1] -> distances (B,)
Distance = Callable[[Tensor], Tensor]  # images (...,B,3,H,W) in [-1,1] -> distances (...,B) of each to its hr


class Target(NamedTuple):
    """The reference images and what measures the distance to them, shared by all losses and samples of an iteration.

    hr: (B,3,H,W) in [-1,1].
    distance: the judge's distance to hr; None where no loss of the run asks a judge. The judges of this project
        compute hr's features once (`judge.with_reference(hr)`), when the distance is first asked for: not every step
        asks.
    lr: (B,3,h,w) in [-1,1], which the SR images are made from; UDL's second stage asks for it.
    features: the distances of the perceptual losses, by feature extractor; likewise made once.
    """

    hr: Tensor
    distance: Distance | None = None
    lr: Tensor | None = None
    features: Mapping[str, Distance] | None = None

    @classmethod
    def judged_by(
        cls, judge: Judge | None, hr: Tensor, lr: Tensor | None = None, extractors: Mapping | None = None
    ) -> "Target":
        """hr with the distances of `judge` (one of ours, any callable judge(a, b) -> (B,) or (B,1,1,1), or None) and extractors."""
        features = {name: _at_first_call(extractor, hr) for name, extractor in (extractors or {}).items()}
        if judge is None:
            return cls(hr, None, lr, features)
        if hasattr(judge, "with_reference"):
            return cls(hr, _at_first_call(judge, hr), lr, features)

        def distance(images: Tensor) -> Tensor:
            reference = hr.expand_as(images).flatten(0, -4)
            return judge(images.flatten(0, -4), reference).reshape(images.shape[:-3])

        return cls(hr, distance, lr, features)


def _at_first_call(judge, hr: Tensor) -> Distance:
    """The distance judge.with_reference(hr), which is made when it is first called, and once."""

    @cache
    def distance() -> Distance:
        with torch.enable_grad():  # whoever calls first, one that needs a gradient may come after
            return judge.with_reference(hr)

    return lambda images: distance()(images)
