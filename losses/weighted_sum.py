"""A weighted sum of losses, as in the generator loss of SRGAN (Ledig et al., CVPR 2017)."""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .base import Loss
from .target import Target


class Term(NamedTuple):
    """A loss, its weight, and the epoch from which it is active and its helper learns."""

    loss: Loss
    weight: float = 1.0
    start_epoch: float = 0.0


class WeightedSum(Loss):
    """The weighted sum of the active terms; helper_loss is the unweighted sum of their helpers' losses."""

    def __init__(self, *terms: Term):
        helpers = nn.ModuleList(term.loss.helper for term in terms if term.loss.helper is not None)
        super().__init__(helpers if len(helpers) else None)
        self.has_one_helper = len(helpers) == 1
        self.losses = nn.ModuleList(term.loss for term in terms)
        self.needs_judge = any(term.loss.needs_judge for term in terms)
        self.extractors = tuple(dict.fromkeys(name for term in terms for name in term.loss.extractors))
        self.of_whole_batch = tuple(setting for term in terms for setting in term.loss.of_whole_batch)
        self.terms = terms

    @property
    def weighting(self) -> nn.Module | None:
        """The weighting network of the first term that has one."""
        return next((term.loss.weighting for term in self.terms if term.loss.weighting is not None), None)

    def acting(self, epoch: float) -> list[Term]:
        """The terms that are active in this epoch."""
        return [term for term in self.terms if epoch >= term.start_epoch]

    def begin_epoch(self, net: nn.Module, epoch: float) -> None:
        for term in self.terms:
            term.loss.begin_epoch(net, epoch)

    def begin_step(self, step: int) -> None:
        for term in self.terms:
            term.loss.begin_step(step)

    def helper_loss(self, sr: Tensor, target: Target, epoch: float) -> Tensor | None:
        losses = [term.loss.helper_loss(sr, target, epoch) for term in self.acting(epoch)]
        losses = [loss for loss in losses if loss is not None]
        return reduce(torch.add, losses) if losses else None

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        terms = (term.weight * term.loss(sr, target, epoch, features) for term in self.acting(epoch))
        return reduce(torch.add, terms)

    def phase(self, epoch: float) -> int:
        return sum(1 + term.loss.phase(epoch) for term in self.acting(epoch))

    def helper_parameters(self, epoch: float) -> list[nn.Parameter]:
        return [p for term in self.acting(epoch) for p in term.loss.helper_parameters(epoch)]

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        """The terms' scalars; the helper's only if there is one, because the sum hides the single losses."""
        own = helper_loss if self.has_one_helper else None
        return {name: value for term in self.acting(epoch) for name, value in term.loss.log_scalars(own, epoch).items()}
