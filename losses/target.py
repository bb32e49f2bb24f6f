"""What every loss of one training iteration is measured against."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Judge = Callable[[Tensor, Tensor], Tensor]  # (B,3,H,W), (B,3,H,W) in [-1,1] -> distances (B,)


class Target(NamedTuple):
    """The reference images and their judge, shared by all losses and all samples of one iteration.

    hr: (B,3,H,W) in [-1,1].
    distance: images (...,B,3,H,W) in [-1,1] -> perceptual distances (...,B) of each to its hr; None where
        no loss of the run asks a judge. The judges of this project compute hr's features once, when the
        distance is made (`judge.against(hr)`).
    """

    hr: Tensor
    distance: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def judged_by(cls, judge: Judge | None, hr: Tensor) -> "Target":
        """hr with the distances of `judge`: one of ours, any callable judge(a, b) -> (B,), or None."""
        if judge is None:
            return cls(hr)
        if hasattr(judge, "against"):
            return cls(hr, judge.against(hr))

        def distance(images: Tensor) -> Tensor:
            reference = hr.expand_as(images).flatten(0, -4)
            return judge(images.flatten(0, -4), reference).reshape(images.shape[:-3])

        return cls(hr, distance)
