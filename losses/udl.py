"""Uncertainty-driven loss: first learn where the network is uncertain, then train more there.

Ning et al., "Uncertainty-Driven Loss for Single Image Super-Resolution", NeurIPS 2021. With s = ln theta, the
logarithm of the uncertainty, from a head on the SR network's features:

    stage 1 (ESU):  mean(|sr - hr| * exp(-s)) + 2 mean(s)      SR network and head learn together
    stage 2:        mean(|sr - hr| * (s - min s + 1))          min over height and width, per sample and channel

Stage 2 begins from the weights of stage 1, and its s is that of stage 1's network, which no longer learns.

- The paper's weight is s - min s. The authors' code adds 1, without which pixels of little uncertainty have next to
  no weight; the code's weight is the default, the paper's is plus_one=False. TLW's code for its comparison adds no 1
  either, and takes the minimum over the whole batch: minimum="batch".
- The code's images are in [0,255], and its head, which ends in an ELU, gives s > -1. For ours in [-1,1] the best s,
  ln(|sr - hr| / 2), would lie below that almost everywhere. So stage 1 is that of the code's unit, divided by
  LEVELS: mean(|sr - hr| * exp(-s)) + 2 mean(s) / LEVELS. It has the same optimum, and the scale of stage 2.
- In the code the stages are two runs, with an optimizer and a schedule each: restart=True. Here the loss changes at
  the beginning of an epoch of one run and keeps a frozen copy. (TLW's released comparison never trains the head;
  here it is trained.)
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from . import global_batch
from .base import Loss
from .pixel import LEVELS, absolute_error
from .target import Target


def image_minimum(s: Tensor) -> Tensor:
    """The minimum of each sample and channel: (B,C,H,W) -> (B,C,1,1)."""
    return s.amin(dim=(-2, -1), keepdim=True)


def batch_minimum(s: Tensor) -> Tensor:
    """The minimum of the whole batch, whichever processes share it: (B,C,H,W) -> ()."""
    return global_batch.all_reduce_min(s.amin())


class UDL(Loss):
    """Both stages on L1. forward needs features in stage 1 and target.lr in stage 2.

    Args:
        net: the SR network; it is copied.
        head: features -> s (B,3 or 1,H,W).
        second: epoch at which stage 2 begins.
        plus_one: add 1 to the weights of stage 2.
        minimum: what is subtracted from them, the minimum of each "image" and channel or that of the "batch".
        restart: begin stage 2 with a new optimizer and schedule.
    """

    def __init__(
        self,
        net: nn.Module,
        head: nn.Module,
        second: int = 10,
        plus_one: bool = True,
        minimum: str = "image",
        restart: bool = False,
    ):
        super().__init__()
        self.restart_epoch = second if restart else None
        self.minimum = {"image": image_minimum, "batch": batch_minimum}[minimum]
        self.of_whole_batch = ("udl_minimum=batch",) if minimum == "batch" else ()
        self.head = head
        # There from the beginning, so that all states of a run have the same names.
        self.frozen = nn.ModuleDict({"net": copy.deepcopy(net), "head": copy.deepcopy(head)})
        self.frozen.eval().requires_grad_(False)
        self.second, self.plus_one = second, plus_one
        self.stage = 1  # a plain number: reading it from a GPU would wait for the device

    def train(self, mode: bool = True) -> "UDL":
        super().train(mode)
        self.frozen.eval()
        return self

    def get_extra_state(self) -> Tensor:
        """The stage, which belongs to the state; under this name torch saves it."""
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        if state not in (1, 2):
            raise RuntimeError(f"UDL has no stage {int(state)}")
        self._enter(int(state))

    def _enter(self, stage: int) -> None:
        self.stage = stage
        self.head.requires_grad_(stage == 1)

    def begin_epoch(self, net: nn.Module, epoch: float) -> None:
        """Enter stage 2 at its epoch. Raises ValueError if stage 1 was left out."""
        if epoch < self.second or self.stage == 2:
            return
        if epoch > self.second:
            raise ValueError(
                f"epoch {epoch:g} is in UDL's second stage (--udl-epoch {self.second}), and there is no "
                "first to weight it; begin the run before that epoch"
            )
        self.frozen["net"].load_state_dict(net.state_dict())
        self.frozen["head"].load_state_dict(self.head.state_dict())
        self._enter(2)

    @torch.no_grad()
    def weight(self, lr: Tensor) -> Tensor:
        """The weights of stage 2: lr (B,3,h,w) -> (B,3 or 1,H,W), at least 0, or 1 with plus_one."""
        net: Any = self.frozen["net"]
        s = self.frozen["head"](net.forward_features(lr)).to(lr.dtype)
        return s - self.minimum(s) + self.plus_one

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        error = absolute_error(sr, target.hr)
        if self.stage == 1:
            s = self.head(features).to(sr.dtype)
            return (error * torch.exp(-s)).mean() + 2 / LEVELS * s.mean()
        if target.lr is None:
            raise ValueError("UDL's second stage needs the LR images; add lr to its target")
        return (error * self.weight(target.lr)).mean()

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        return {"stage": self.stage}

    def phase(self, epoch: float) -> int:
        return self.stage
