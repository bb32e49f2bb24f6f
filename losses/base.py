"""The interface of the losses that the training loop calls.

A new loss is one file with a subclass of Loss, and its entry in LOSSES (losses/__init__.py).
"""

import inspect

from torch import Tensor, nn

from .target import Target


class Loss(nn.Module):
    """Base class of all losses: loss(sr, target, epoch, features) -> a scalar, the SR network's loss.

    A subclass implements forward and overrides other methods as needed. Attributes:

    helper: the module trained on helper_loss (TLW's weighting network, a discriminator), or None. The loss's other
        parameters are trained with the SR network: see `joint_parameters`.
    needs_judge: True if the loss calls target.distance.
    extractors: names of the feature extractors that it calls in target.features, such as "vgg19:conv5_4".
    of_whole_batch: settings, such as "wc=normalised", with which the loss is no mean over samples, so that gradients
        cannot be accumulated over parts of a batch. BatchNorm does not count.
    restart_epoch: the epoch in which the optimizer is new and the learning-rate schedule restarts, or None.
    """

    needs_judge: bool = False
    extractors: tuple[str, ...] = ()
    of_whole_batch: tuple[str, ...] = ()
    restart_epoch: int | None = None

    def __init__(self, helper: nn.Module | None = None):
        super().__init__()
        self.helper = helper

    @property
    def weighting(self) -> nn.Module | None:
        """The network weighting(hr, sr, k) -> mu, the pixels' mean weights, or None."""
        return None

    def begin_epoch(self, net: nn.Module, epoch: float) -> None:
        """Prepare for an epoch, before its first step; net: the SR network. A second call changes nothing."""

    def begin_step(self, step: int) -> None:
        """Prepare for a step; step: its number in the run, from 0."""

    def helper_loss(self, sr: Tensor, target: Target, epoch: float) -> Tensor | None:
        """The helper's loss, a scalar; None if it does not learn in this step. sr is taken as a constant."""
        return None

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        """The SR network's loss, a scalar.

        Args:
            sr: (B,3,H,W) in [-1,1], with its graph.
            target: the reference images and the distances to them.
            epoch: the training's progress in epochs (2.5: half way through the third).
            features: the SR network's features (B,C,h,w) from which sr was made.
        """
        raise NotImplementedError

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        """Further numbers for the log; helper_loss: its last value, None without one."""
        return {}

    def phase(self, epoch: float) -> int:
        """An int that changes when the loss's values are no longer comparable with earlier ones."""
        return 0

    def helper_parameters(self, epoch: float) -> list[nn.Parameter]:
        """The helper's parameters that get a gradient from helper_loss now."""
        return [] if self.helper is None else [*self.helper.parameters()]

    def joint_parameters(self) -> list[nn.Parameter]:
        """The loss's own parameters that the SR network's optimizer trains."""
        helpers = set(self.helper.parameters()) if self.helper is not None else set()
        return [p for p in self.parameters() if p.requires_grad and p not in helpers]


def check_loss(loss: object) -> Loss:
    """Return loss if it is a Loss whose methods have the right parameters; else raise ValueError."""
    if not isinstance(loss, Loss):
        raise ValueError(f"{type(loss).__name__} is not a loss; expected a subclass of Loss, see losses/base.py")
    if type(loss).forward is Loss.forward:
        raise ValueError(f"{type(loss).__name__} has no forward; expected forward(sr, target, epoch, features)")
    for method in ("forward", "helper_loss", "begin_epoch", "begin_step", "log_scalars"):
        expected, found = (list(inspect.signature(getattr(c, method)).parameters) for c in (Loss, type(loss)))
        if found != expected:
            raise ValueError(
                f"{type(loss).__name__}.{method} takes {', '.join(found[1:])}; expected {', '.join(expected[1:])}"
            )
    return loss
