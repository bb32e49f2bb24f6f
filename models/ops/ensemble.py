"""The self-ensemble of EDSR (Lim et al., CVPRW 2017), "+" in the field's tables: the mean of 8 views."""

from collections.abc import Callable
from itertools import product
from typing import Any

from torch import Tensor, nn


class SelfEnsemble(nn.Module):
    """lr (B,3,h,w) -> the mean of upscale, float32, over the eight flips and transpositions of lr.

    upscale: (B,3,h,w) -> (B,3,s*h,s*w), such as a network or a TiledUpscaler. The ensemble takes eight times as long,
    and memory for two more SR images.
    """

    def __init__(self, upscale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.upscale = upscale

    def forward(self, lr: Tensor) -> Tensor:
        total: Any = None
        for transposed, flips in product((False, True), ((), (-1,), (-2,), (-2, -1))):
            view = lr.mT.contiguous() if transposed else lr
            sr = self.upscale(view.flip(flips)).float().flip(flips)
            sr = sr.mT if transposed else sr
            total = sr.contiguous() if total is None else total.add_(sr)
        return total.div_(8)
