"""What learns in a run: one SR network with its loss, and all the state of both."""

import math
import zlib
from contextlib import contextmanager

import torch
from torch import nn

import networks
from configs import Config
from losses import NEEDS_EXTRACTORS, NEEDS_JUDGE, Loss


class Learner:
    """One SR network, its loss, their optimizers and their own stream of random numbers."""

    def __init__(self, name: str, net: nn.Module, loss: Loss, config: Config, device: torch.device):
        self.name, self.device, self.of = name, device, networks.identity(config)
        self.judges = [config.judge] * (name in NEEDS_JUDGE) + [*config.dp_extractors] * (name in NEEDS_EXTRACTORS)
        self.net = net.to(device, memory_format=torch.channels_last).train()
        self.loss = loss.to(device, memory_format=torch.channels_last).train()
        adam = {"lr": config.learning_rate, "betas": config.betas, "fused": True}
        self.opt = torch.optim.Adam([*self.net.parameters(), *loss.joint_parameters()], **adam)
        self.helper_opt = torch.optim.Adam(loss.helper.parameters(), **adam) if loss.helper is not None else None
        self.best = math.inf  # lowest validation LPIPS so far
        # Of the loss's name, not of its place in the run: alone or among others, it draws the same numbers.
        seed = zlib.crc32(f"{config.seed} {name}".encode())
        self.streams = {kind: torch.Generator(kind).manual_seed(seed).get_state() for kind in {"cpu", device.type}}

    @contextmanager
    def own_stream(self):
        """Within, torch's global random streams are this learner's."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(self.streams["cpu"])
            for device in cuda:
                torch.cuda.set_rng_state(self.streams["cuda"], device)
            yield
            self.streams["cpu"] = torch.get_rng_state()
            for device in cuda:
                self.streams["cuda"] = torch.cuda.get_rng_state(device)

    def set_learning_rate(self, rate: float) -> None:
        for opt in filter(None, (self.opt, self.helper_opt)):
            for group in opt.param_groups:
                group["lr"] = rate

    def learned(self) -> dict:
        """What the learner has learned, what network it is and the judges and extractors it learned from."""
        weights = {"net": self.net.state_dict(), "loss": self.loss.state_dict()}
        return weights | {"of": self.of, "judges": self.judges}

    def state(self) -> dict:
        """All that is needed to go on; load_state takes it back."""
        return self.learned() | {
            "opt": self.opt.state_dict(),
            "helper_opt": self.helper_opt.state_dict() if self.helper_opt else None,
            "streams": self.streams,
            "best": self.best,
        }

    def load_state(self, state: dict) -> None:
        self.net.load_state_dict(state["net"])
        self.loss.load_state_dict(state["loss"])
        self.opt.load_state_dict(state["opt"])
        if self.helper_opt:
            self.helper_opt.load_state_dict(state["helper_opt"])
        self.best = state["best"]
        # A run that moves to another kind of device begins that device's stream.
        self.streams |= {kind: stream for kind, stream in state["streams"].items() if kind in self.streams}
