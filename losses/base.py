"""What every loss is to the training loop."""

from torch import Tensor, nn

from .target import Target


class Loss(nn.Module):
    """loss(sr, target, epoch, features) -> the scalar that the SR network descends, in one training iteration.

    sr: (B,3,H,W) in [-1,1]; epoch: the age of the training in epochs (2.5: half way through the third);
    features: the SR network's features (B,C,h,w) that sr was made from, for the losses that read them.
    helper: what learns beside the SR network, on a loss of its own (TLW's weighting network, a discriminator).
    Whatever else has parameters here learns together with the SR network: see `joint_parameters`.
    """

    def __init__(self, helper: nn.Module | None = None):
        super().__init__()
        self.helper = helper

    @property
    def weighting(self) -> nn.Module | None:
        """The network weighting(hr, sr, k) -> weights of the pixels, where this loss has one."""
        return None

    def begin_epoch(self, net: nn.Module, epoch: float) -> None:
        """Called with the SR network before the first step of an epoch; a second call changes nothing."""

    def begin_step(self, step: int) -> None:
        """Called before each step with its number in the run, from 0, where not every step is like the others."""

    def helper_loss(self, sr: Tensor, target: Target, epoch: float) -> Tensor | None:
        """The scalar that the helper descends, sr a constant; None where there is nothing for it to learn now."""
        return None

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        """What the log shows beside the loss's value, given that of the last helper_loss."""
        return {}

    def helper_parameters(self, epoch: float) -> list[nn.Parameter]:
        """The parameters of the helper that helper_loss at this age has a gradient for."""
        return [] if self.helper is None else [*self.helper.parameters()]

    def joint_parameters(self) -> list[nn.Parameter]:
        """The parameters that learn together with the SR network, by its optimizer."""
        helpers = set(self.helper.parameters()) if self.helper is not None else set()
        return [p for p in self.parameters() if p.requires_grad and p not in helpers]
