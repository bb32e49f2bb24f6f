"""Adversarial losses: a discriminator learns to tell hr from sr, the SR network to deceive it.

C is the discriminator before the sigmoid, BCE(c, 1) = -log sigmoid(c), BCE(c, 0) = -log(1 - sigmoid(c)).

vanilla (Goodfellow et al. 2014, with the generator's loss that does not saturate, as in SRGAN, CVPR 2017):
    discriminator  BCE(C(hr), 1) + BCE(C(sr), 0)                                SR network  BCE(C(sr), 1)

ragan (relativistic average; Jolicoeur-Martineau 2018 and ESRGAN, Wang et al., ECCVW 2018, Eq. (1)-(2)):
    discriminator  BCE(C(hr) - mean C(sr), 1) + BCE(C(sr) - mean C(hr), 0)
    SR network     BCE(C(hr) - mean C(sr), 0) + BCE(C(sr) - mean C(hr), 1)

The mean is over the batch. ESRGAN's code and those built on it halve both relativistic losses; here they are as
printed, so half of --gan-weight gives their ratio (of the discriminator's loss Adam sees no factor). Those codes take
the SR network's step first; here the helper's comes first, as in Algorithm 1 of TLW, on the same sr: the SR network
meets the discriminator that has just learned from it, theirs that of one step before.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import global_batch
from .base import Loss
from .target import Target


def cross_entropy(logits: Tensor, label: float) -> Tensor:
    """The mean binary cross entropy of logits (B,1) that should all say `label`."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def vanilla(sr: Tensor, hr: Tensor, sr_label: float) -> Tensor:
    """The loss whose logits (B,1) should say sr_label for sr and the opposite for hr."""
    return cross_entropy(sr, sr_label) + cross_entropy(hr, 1 - sr_label)


def relativistic_average(sr: Tensor, hr: Tensor, sr_label: float) -> Tensor:
    """`vanilla` with each side's logits relative to the mean of the other's."""
    return vanilla(sr - global_batch.all_reduce_mean(hr.mean()), hr - global_batch.all_reduce_mean(sr.mean()), sr_label)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let gradients flow through the module but not into its parameters."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)


class Adversarial(Loss):
    """The adversarial loss, kind "vanilla" or "ragan"; discriminator: (B,3,H,W) in [-1,1] -> logits (B,1)."""

    helper: nn.Module

    def __init__(self, discriminator: nn.Module, kind: str = "vanilla"):
        super().__init__(discriminator)
        self.relativistic = {"vanilla": False, "ragan": True}[kind]
        self.of_whole_batch = ("gan=ragan",) if self.relativistic else ()

    def logits(self, images: Tensor) -> Tensor:
        return self.helper(images).to(images.dtype)  # under autocast the discriminator's are bf16

    def helper_loss(self, sr: Tensor, target: Target, epoch: float) -> Tensor:
        """The discriminator's loss; sr (B,3,H,W) is a constant."""
        compare = relativistic_average if self.relativistic else vanilla
        return compare(self.logits(sr.detach()), self.logits(target.hr), sr_label=0.0)

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        with frozen(self.helper):
            logits = self.logits(sr)
            if not self.relativistic:
                return cross_entropy(logits, 1.0)
            return relativistic_average(logits, self.logits(target.hr), sr_label=1.0)

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        return {} if helper_loss is None else {"D": helper_loss}
