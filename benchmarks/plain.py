"""One iteration of Table I as TLW's released code runs it: the baseline of benchmarks/step.py.

A plain Algorithm 1 of arXiv 2301.10575: two SR forwards in a TLW step, a call of the `lpips` package for each distance,
which computes the reference image's features again, T samples in a loop, float32, contiguous tensors. It leaves out the
released code's plots and logs of every step, which would make it slower still.
"""

import copy
import math

import lpips
import torch
from torch import Tensor, nn

from losses.tlw import k_schedule
from losses.weighting import WeightingNet, relaxed_bernoulli

LOSSES = ("L1+TLW", "MSE+TLW", "L1", "MSE")
EPS = 1e-3


class Plain:
    """Four copies of `net`, two of them with a copy of `weighting`, each with its own Adam.

    noise: noise(shape) returns uniform random numbers in [0,1). judge: the lpips package's network, frozen.
    """

    def __init__(
        self,
        net: nn.Module,
        weighting: WeightingNet,
        judge: lpips.LPIPS,
        samples: int,
        learning_rate: float,
        noise=torch.rand,
    ) -> None:
        self.judge, self.samples, self.noise = judge, samples, noise
        adam = {"lr": learning_rate, "betas": (0.5, 0.999)}
        self.nets = {name: copy.deepcopy(net) for name in LOSSES}
        self.opts = {name: torch.optim.Adam(net.parameters(), **adam) for name, net in self.nets.items()}
        self.weightings = {name: copy.deepcopy(weighting) for name in LOSSES if "TLW" in name}
        self.helper_opts = {name: torch.optim.Adam(w.parameters(), **adam) for name, w in self.weightings.items()}

    def criterion(self, w: Tensor, sr: Tensor, hr: Tensor) -> Tensor:
        """WC of Eq. (4), (B,1,1,1)."""
        near = self.judge((1 - w) * sr + w * hr, hr)
        far = self.judge(w * sr + (1 - w) * hr, hr)
        return (far.abs() + EPS) / (near.abs() + EPS)

    def sample(self, mu: Tensor) -> Tensor:
        return relaxed_bernoulli(mu, self.noise(mu.shape).to(mu.device))

    def weighted_error(self, name: str, w: Tensor, sr: Tensor, hr: Tensor) -> Tensor:
        error = sr - hr
        if name == "L1+TLW":
            return w * error.abs()
        return w / (error.abs().detach() + 0.1) * error**2

    def tlw_step(self, name: str, lr: Tensor, hr: Tensor, k: float) -> tuple[Tensor, Tensor]:
        """Run Algorithm 1 on one batch; return the losses of the E-step and the M-step."""
        net, weighting = self.nets[name], self.weightings[name]
        sr = net(lr).detach()
        mu = weighting(hr, sr, k)
        helper_loss = -self.criterion(self.sample(mu), sr, hr).log().mean()
        self.helper_opts[name].zero_grad()
        helper_loss.backward()
        self.helper_opts[name].step()

        sr = net(lr)
        with torch.no_grad():
            mu = weighting(hr, sr, k)
            samples = [self.sample(mu) for _ in range(self.samples)]
            criteria = [self.criterion(w, sr, hr) for w in samples]
        loss = sum((wc * self.weighted_error(name, w, sr, hr)).mean() for w, wc in zip(samples, criteria))
        self.opts[name].zero_grad()
        loss.backward()
        self.opts[name].step()
        return helper_loss.detach(), loss.detach()

    def plain_step(self, name: str, lr: Tensor, hr: Tensor) -> tuple[None, Tensor]:
        error = self.nets[name](lr) - hr
        loss = (error.abs() if name == "L1" else error**2).mean()
        self.opts[name].zero_grad()
        loss.backward()
        self.opts[name].step()
        return None, loss.detach()

    def step(self, lr: Tensor, hr: Tensor, epoch: float) -> dict[str, tuple[Tensor | None, Tensor]]:
        """Train all four on one batch; return the losses of E-step (or None) and M-step by name."""
        k = k_schedule(math.floor(epoch))
        return {
            name: self.tlw_step(name, lr, hr, k) if name in self.weightings else self.plain_step(name, lr, hr)
            for name in LOSSES
        }
