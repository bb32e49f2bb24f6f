"""Algorithm 1 with accumulated gradients: a batch in equal parts, in the memory of one of them.

The step is that of the whole batch, to rounding: losses are means over equally many samples, and TLW's noise is drawn
for all parts at once. Two things differ. BatchNorm normalises each part by the part's own statistics; one in the SR
network counts them in both steps. A network with stochastic depth (HAT) draws anew for each of the two steps, so that
the E-step sees other SR images than the M-step.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from losses import Target, global_batch

from .learner import Learner

LossOf = Callable[[Tensor, Target], Tensor]


class Parts:
    """A batch in `count` equal parts, with what its targets are made of.

    lr (B,3,h,w), hr (B,3,s*h,s*w) in [-1,1]; judge, extractors: as for Target.
    """

    def __init__(self, count: int, judge: nn.Module | None, lr: Tensor, hr: Tensor, extractors: Mapping) -> None:
        self.count, self.judge, self.extractors = count, judge, extractors
        self.images = [*zip(lr.chunk(count), hr.chunk(count), strict=True)]

    def losses(self, loss_of: LossOf) -> Iterator[Tensor]:
        """loss_of(lr, target) of each part; its graph lives until the next is asked for."""
        noise: list[Tensor] = []
        for number, (lr, hr) in enumerate(self.images):
            with global_batch.part(number, self.count, noise):
                loss = loss_of(lr, Target.judged_by(self.judge, hr, lr, self.extractors))
            yield loss


def accumulated_em_step(learner: Learner, parts: Parts, epoch: float) -> tuple[Tensor | None, Tensor]:
    """Algorithm 1 on one batch in parts; returns what train.py's em_step does.

    As printed there, the SR images are made once for each of the two steps, for no memory holds those of all parts.
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
