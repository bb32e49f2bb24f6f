"""The contract of the losses: what the training loop calls.

A new loss is one file with a subclass of Loss, and its entry in LOSSES (losses/__init__.py).
"""

import inspect

from torch import Tensor, nn

from .target import Target


class Loss(nn.Module):
    """Base class of all losses: loss(sr, target, epoch, features) -> a scalar, the SR network's loss.

    A subclass implements forward and overrides other methods where it differs. Attributes:

    helper: the module trained beside the SR network on helper_loss (TLW's weighting network, a discriminator), or None.
        Other modules with parameters are trained together with the SR network: see `joint_parameters`.
    needs_judge: True if the loss calls target.distance.
    extractors: the names of the feature extractors that it calls in target.features, such as "vgg19:conv5_4".
    of_whole_batch: the settings, such as "wc=normalised", that make it more than a mean over samples: it needs the
        batch as a whole, and cannot accumulate gradients over parts of it. BatchNorm does not count.
    restart_epoch: the epoch in which the SR network gets a new optimizer and the learning-rate schedule restarts.
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
        """The network weighting(hr, sr, k) -> weights of the pixels, if this loss has one."""
        return None

    def begin_epoch(self, net: nn.Module, epoch: float) -> None:
        """Called with the SR network before the first step of an epoch; a second call changes nothing."""

    def begin_step(self, step: int) -> None:
        """Called before each step with its number in the run, from 0."""

    def helper_loss(self, sr: Tensor, target: Target, epoch: float) -> Tensor | None:
        """The helper's loss, a scalar, with sr a constant; None if it has nothing to learn in this step."""
        return None

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        """The SR network's loss, a scalar.

        Args:
            sr: (B,3,H,W) in [-1,1], with its graph.
            target: what sr is measured against.
            epoch: how far the training is, in epochs (2.5: half way through the third).
            features: the SR network's features (B,C,h,w) that sr was made from.
        """
        raise NotImplementedError

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        """The numbers that the log shows beside the loss, given the value of the last helper_loss."""
        return {}

    def phase(self, epoch: float) -> int:
        """A number that changes when this loss becomes another function, with values of another size."""
        return 0

    def helper_parameters(self, epoch: float) -> list[nn.Parameter]:
        """The parameters of the helper that helper_loss has a gradient for in this epoch."""
        return [] if self.helper is None else [*self.helper.parameters()]

    def joint_parameters(self) -> list[nn.Parameter]:
        """The parameters that learn together with the SR network, by its optimizer."""
        helpers = set(self.helper.parameters()) if self.helper is not None else set()
        return [p for p in self.parameters() if p.requires_grad and p not in helpers]


def check_loss(loss: object) -> Loss:
    """Return loss if it keeps the contract; raise ValueError otherwise."""
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
