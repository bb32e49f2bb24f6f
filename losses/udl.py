"""Uncertainty-driven loss: first learn where the network is uncertain, then train more there.

Ning et al., "Uncertainty-Driven Loss for Single Image Super-Resolution", NeurIPS 2021. With s = ln theta, the
logarithm of the uncertainty, from a head on the SR network's features:

    stage 1 (ESU):  mean(|sr - hr| * exp(-s)) + 2 mean(s)      SR network and head learn together
    stage 2:        mean(|sr - hr| * (s - min s + 1))          min over height and width, per sample and channel

Stage 2 goes on from the weights of stage 1; s then comes from a frozen copy of that network and head.

- The paper's weight is s - min s (plus_one=False). The default, s - min s + 1, is that of the authors' code; without
  the 1, pixels of low uncertainty have almost no weight. The UDL in TLW's code adds no 1 and takes the minimum over the
  whole batch (minimum="batch").
- The authors' images are in [0,255], and their head ends in an ELU, so that s > -1. For images in [-1,1] the optimal s,
  ln(|sr - hr| / 2), would be lower almost everywhere. So stage 1 is the loss of images in [0,255] divided by LEVELS:
  mean(|sr - hr| * exp(-s)) + 2 mean(s) / LEVELS. It has the authors' optimum and the scale of stage 2.
- In the authors' code the stages are two runs, each with its own optimizer and schedule: restart=True. Here the loss
  changes at the beginning of an epoch of one run. (The UDL in TLW's code never trains the head; here it is trained.)
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
    """The minimum over the global batch of all processes: (B,C,H,W) -> ()."""
    return global_batch.all_reduce_min(s.amin())


class UDL(Loss):
    """Both stages with L1. forward needs features in stage 1 and target.lr in stage 2.

    Args:
        net: the SR network; it is copied.
        head: features -> s (B,3 or 1,H,W).
        second: the epoch in which stage 2 begins.
        plus_one: add 1 to the weights of stage 2.
        minimum: subtract from s its minimum over each "image" and channel, or over the "batch".
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
        # Created here already, so that all checkpoints of a run have the same parameter names.
        self.frozen = nn.ModuleDict({"net": copy.deepcopy(net), "head": copy.deepcopy(head)})
        self.frozen.eval().requires_grad_(False)
        self.second, self.plus_one = second, plus_one
        self.stage = 1  # an int, not a buffer: reading a buffer would wait for the GPU

    def train(self, mode: bool = True) -> "UDL":
        super().train(mode)
        self.frozen.eval()
        return self

    def get_extra_state(self) -> Tensor:
        """The stage, which state_dict() includes through this method."""
        return torch.tensor(self.stage)

    def set_extra_state(self, state: Tensor) -> None:
        if state not in (1, 2):
            raise RuntimeError(f"UDL has no stage {int(state)}")
        self._enter(int(state))

    def _enter(self, stage: int) -> None:
        self.stage = stage
        self.head.requires_grad_(stage == 1)

    def begin_epoch(self, net: nn.Module, epoch: float) -> None:
        """Enter stage 2 in epoch `second`. Raises ValueError in a later epoch if still in stage 1."""
        if epoch < self.second or self.stage == 2:
            return
        if epoch > self.second:
            raise ValueError(
                f"epoch {epoch:g} is in UDL's second stage (--udl-epoch {self.second}), which needs the "
                "uncertainty of the first; begin the run before that epoch"
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
