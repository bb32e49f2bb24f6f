"""Adversarial losses: a discriminator learns to tell hr from sr, the SR network to deceive it.

C are the discriminator's logits, BCE(c, 1) = -log sigmoid(c), BCE(c, 0) = -log(1 - sigmoid(c)).

vanilla (Goodfellow et al. 2014, with the non-saturating generator loss, as in SRGAN, CVPR 2017):
    discriminator  BCE(C(hr), 1) + BCE(C(sr), 0)                                SR network  BCE(C(sr), 1)

ragan (relativistic average; Jolicoeur-Martineau 2018 and ESRGAN, Wang et al., ECCVW 2018, Eq. (1)-(2)):
    discriminator  BCE(C(hr) - mean C(sr), 1) + BCE(C(sr) - mean C(hr), 0)
    SR network     BCE(C(hr) - mean C(sr), 0) + BCE(C(sr) - mean C(hr), 1)

The mean is over the batch. ESRGAN's code and its descendants halve both relativistic losses; here they are as printed,
so half of their weight as --gan-weight is equivalent (Adam ignores a constant factor on the discriminator's loss). They
update the SR network first; here, as in Algorithm 1 of TLW, the discriminator is updated first, on the same sr.
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
    """The mean binary cross entropy of logits (B,1) with `label`, 0 or 1, for all of them."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def vanilla(sr: Tensor, hr: Tensor, sr_label: float) -> Tensor:
    """The cross entropy of the logits sr (B,1) with sr_label and hr (B,1) with 1 - sr_label, summed."""
    return cross_entropy(sr, sr_label) + cross_entropy(hr, 1 - sr_label)


def relativistic_average(sr: Tensor, hr: Tensor, sr_label: float) -> Tensor:
    """`vanilla` of each side's logits minus the mean of the other side's logits."""
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
    """The adversarial loss.

    discriminator: images (B,3,H,W) in [-1,1] -> logits (B,1). kind: "vanilla" or "ragan", else KeyError.
    """

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
