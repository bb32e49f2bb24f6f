"""Algorithm 1 with accumulated gradients: a batch in equal parts, in the memory of one part.

The step equals that of the whole batch up to rounding: losses are means over equally many samples, and TLW's noise is
drawn for all parts at once. Two things differ. BatchNorm normalises each part by its own statistics, and in the SR
network updates its running statistics in both steps. Stochastic depth (HAT) draws again in each of the two steps, so
that the E-step sees other SR images than the M-step.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from losses import Target, global_batch

from .learner import Learner

LossOf = Callable[[Tensor, Target], Tensor]


class Parts:
    """A batch in `count` equal parts, and what their targets need.

    lr (B,3,h,w), hr (B,3,s*h,s*w) in [-1,1]; judge, extractors: as for Target.
    """

    def __init__(self, count: int, judge: nn.Module | None, lr: Tensor, hr: Tensor, extractors: Mapping) -> None:
        self.count, self.judge, self.extractors = count, judge, extractors
        self.images = [*zip(lr.chunk(count), hr.chunk(count), strict=True)]

    def losses(self, loss_of: LossOf) -> Iterator[Tensor]:
        """Yield loss_of(lr, target) of each part, one after another, so that one graph is in memory at a time."""
        noise: list[Tensor] = []
        for number, (lr, hr) in enumerate(self.images):
            with global_batch.part(number, self.count, noise):
                loss = loss_of(lr, Target.judged_by(self.judge, hr, lr, self.extractors))
            yield loss


def accumulated_em_step(learner: Learner, parts: Parts, epoch: float) -> tuple[Tensor | None, Tensor]:
    """Algorithm 1 on one batch in parts; returns the same as train.py's em_step.

    As in the paper's listing, each of the two steps computes the SR images: those of all parts do not fit into memory.
    """

    def e_loss(lr: Tensor, target: Target) -> Tensor | None:
        with torch.no_grad():
            sr, _ = learner.forward_with_features(lr)
        return learner.helper_loss(sr.float(), target, epoch)

    def m_loss(lr: Tensor, target: Target) -> Tensor:
        sr, features = learner.forward_with_features(lr)
        return learner.loss(sr.float(), target, epoch, features)

    helper_loss = None
    if learner.loss.helper_parameters(epoch):
        helper_loss = learner.accumulate_and_step(learner.helper_opt, parts.losses(e_loss), parts.count)
    return helper_loss, learner.accumulate_and_step(learner.opt, parts.losses(m_loss), parts.count)
