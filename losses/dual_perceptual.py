"""Dual Perceptual loss: two feature distances in a fixed ratio.

Song et al., "Dual Perceptual Loss for Single Image Super-Resolution Using ESRGAN", 2022 (ESRGAN-DP), Eq. (8)-(9):

    DP = L_a + sg(L_a / (mu * L_b + eps)) * L_b,      sg: stop-gradient

L_a and L_b are L1 distances of features, in the paper VGG19's conv5_4 before activation and a stage of ResNet-50. The
second term is always 1/mu of the first. The authors' code multiplies the ratio by 1/mu instead, which is the same up to
eps. Without dynamic weighting the loss is L_a + L_b, Eq. (6) and the second row of the paper's Table 7. With one
extractor it is L_a, the perceptual loss of SRGAN and ESRGAN. eps keeps the weight finite if L_b is 0.
"""

import torch
from torch import Tensor

from . import global_batch
from .base import Loss
from .target import Target


class DualPerceptual(Loss):
    """DP of one or two feature extractors, named as in target.features; the plain sum if not dynamic."""

    def __init__(self, extractors: tuple[str, ...], mu: float = 0.5, dynamic: bool = True, eps: float = 1e-6):
        super().__init__()
        self.extractors, self.mu, self.dynamic, self.eps = extractors, mu, dynamic, eps
        self.of_whole_batch = ("dp_dynamic=true",) if dynamic and len(extractors) > 1 else ()

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        first, *second = (target.features[name](sr).mean() for name in self.extractors)
        if not second or not self.dynamic:
            return sum(second, first)
        a, b = global_batch.all_reduce_mean(torch.stack([first.detach(), second[0].detach()]))
        return first + a / (self.mu * b + self.eps) * second[0]
