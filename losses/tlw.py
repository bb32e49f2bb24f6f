"""Trainable Loss Weights: the weight criterion, the E-step and the M-step.

Chaichi Mellatshahi and Kasaei, "Trainable Loss Weights in Super-Resolution", arXiv 2301.10575:
Eq. (4), (8)-(13), Algorithm 1. In the paper's letters: x = hr, x^ = sr, g_phi = the weighting network,
D = the judge, T = samples.

The defaults follow the paper. m_step="released" follows the released code where it differs: -log of the WC-weighted
mean of exp(-weighted error) instead of Eq. (13), 0.2 instead of 0.1 in the weights of MSE, and no epsilon in the
numerator of the M-step's WC (the E-step keeps it). As in that code, |D| replaces D in Eq. (4), so that WC > 0 even if a
judge is negative.

The other settings are not the paper's. `weights` and `wc` are controls, to see where the paper's gain comes from. They
change the M-step only, and its WC is computed from the weights in use:
- weights: "uniform" is w = k everywhere, without a weighting network; "shuffled" permutes the pixels of the learned mu;
  "inverted" is FixedSum(1 - mu, k). All have the same mean.
- wc: "normalised" divides WC by its mean over batch and samples; "one" replaces it by 1.
The rest saves time:
- e_every: one E-step in this many steps.
- reuse_mu: the M-step uses the E-step's mu, computed before g_phi's update; Algorithm 1 uses the updated g_phi.
- weighting_scale, weighting_channels: a smaller g_phi.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import global_batch
from .base import Loss
from .pixel import absolute_error, squared_error
from .target import Target
from .weighting import WeightingNet, fixed_sum, relaxed_bernoulli


def k_schedule(epoch: int, k_start: float = 0.3, k_end: float = 0.9, k_epochs: float = 200) -> float:
    """k, the mean weight: from k_start towards k_end, 1 - 1/e of the way after k_epochs (section IV-A)."""
    return k_start + (k_end - k_start) * (1 - math.exp(-epoch / k_epochs))


# Bounds of WC's numerator and denominator that keep WC, its logarithm and its gradient finite in float32. They are far
# beyond usual distances. The released M-step uses the lower one as its epsilon.
MIN_DISTANCE, MAX_DISTANCE = 1e-8, 1e15


def mix(w: Tensor, sr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
    """x_w = w hr + (1 - w) sr, sr corrected where w is large, and x_{1-w}; w (...,B,3,H,W) in [0,1]."""
    gap = w * (hr - sr)
    return sr + gap, hr - gap


def weight_criterion(w: Tensor, sr: Tensor, target: Target, eps: float = 1e-3, far_eps: float | None = None) -> Tensor:
    """WC of Eq. (4): how much more it helps to correct the pixels that w selects than the others.

    WC = (D(x_{1-w}) + eps) / (D(x_w) + eps); the judge sees both mixtures of all samples in one batch.

    Args:
        w: (...,B,3,H,W) in [0,1].
        sr: (B,3,H,W) in [-1,1].
        target: hr and the judge's distance to it.
        eps: epsilon, added to both distances.
        far_eps: the numerator's epsilon; None: eps.

    Returns WC (...,B) within [1e-23, 1e23], or NaN where a distance is infinite or NaN, so that the step is skipped.
    Raises ValueError without a judge.
    """
    if target.distance is None:
        raise ValueError("TLW needs a judge; build its target with Target.judged_by(judge, hr)")
    distance = target.distance(torch.stack(mix(w, sr, target.hr))).to(target.hr.dtype)
    near, far = torch.where(distance.isfinite(), distance.abs(), math.nan)
    far_eps = eps if far_eps is None else far_eps
    return (far + far_eps).clamp(MIN_DISTANCE, MAX_DISTANCE) / (near + eps).clamp(MIN_DISTANCE, MAX_DISTANCE)


def weigh_l1(w: Tensor, sr: Tensor, hr: Tensor, offset: float) -> Tensor:
    """w * |sr - hr|."""
    return w * absolute_error(sr, hr)


def weigh_mse(w: Tensor, sr: Tensor, hr: Tensor, offset: float) -> Tensor:
    """w / (|sr - hr| + offset) * (sr - hr)^2, the divisor a constant.

    MSE is an L1 already weighted by |sr - hr|; the division cancels that weight.
    """
    return w / (absolute_error(sr.detach(), hr) + offset) * squared_error(sr, hr)


def paper_loss(w: Tensor, wc: Tensor, sr: Tensor, hr: Tensor, weigh: Callable) -> Tensor:
    """Eq. (13): sum over the samples of WC(w) * ||w * (hr - sr)||, mean over pixels and batch.

    w: (T,B,3,H,W), wc: (T,B), both constants. WC * w is summed first, to one map per image.
    """
    total = (wc[..., None, None, None] * w).sum(dim=0)
    return weigh(total, sr, hr, offset=0.1).mean()


def released_loss(w: Tensor, wc: Tensor, sr: Tensor, hr: Tensor, weigh: Callable) -> Tensor:
    """The released code's loss: -log(sum_i WC_i exp(-e_i) / sum_i WC_i), e_i the mean weighted error."""
    error = weigh(w, sr, hr, offset=0.2).mean(dim=(-3, -2, -1))  # (T,B)
    log_share = (wc / wc.sum(dim=0)).log()
    return -torch.logsumexp(log_share - error, dim=0).mean()


WEIGH = {"L1": weigh_l1, "MSE": weigh_mse}


class MStep(NamedTuple):
    """A form of the M-step: its loss(w, wc, sr, hr, weigh) -> scalar, and far_eps of its WC."""

    loss: Callable
    far_eps: float | None


# The released code has no far_eps; MIN_DISTANCE keeps the logarithm finite if sr equals hr.
M_STEPS = {"paper": MStep(paper_loss, far_eps=None), "released": MStep(released_loss, far_eps=MIN_DISTANCE)}


def learned(mu: Tensor, k: float) -> Tensor:
    """mu as it is."""
    return mu


def shuffled(mu: Tensor, k: float) -> Tensor:
    """mu (B,3,H,W) with each image's pixels in a random order, the same for all channels."""
    order = global_batch.global_rand(len(mu), mu[0, 0].numel(), device=mu.device).argsort(dim=1)
    return mu.flatten(2).take_along_dim(order[:, None], dim=2).view_as(mu)


def inverted(mu: Tensor, k: float) -> Tensor:
    """1 - mu, moved to the mean k."""
    return fixed_sum(1 - mu, k)


MAPS = {"learned": learned, "shuffled": shuffled, "inverted": inverted}


class TLW(Loss):
    """The loss of Algorithm 1 on a pixel loss ("L1" or "MSE").

    helper_loss trains the weighting network (`helper`, None with uniform weights), forward the SR network. Both draw
    samples from torch's global random stream.

    Args:
        samples: T, samples of the M-step.
        eps: epsilon of WC.
        k: epoch -> the mean weight k; constant within an epoch.
        m_step: "paper" or "released".
        weights: "learned", "uniform", "shuffled" or "inverted".
        wc: "sum" (WC as it is), "normalised" or "one".
        colours: channels of the images, 3 or 1.
    """

    helper: WeightingNet | None

    def __init__(
        self,
        pixel: str = "L1",
        *,
        samples: int = 3,
        eps: float = 1e-3,
        k: Callable[[int], float] = k_schedule,
        m_step: str = "paper",
        weights: str = "learned",
        wc: str = "sum",
        e_every: int = 1,
        reuse_mu: bool = False,
        weighting_scale: int = 1,
        weighting_channels: int = 64,
        colours: int = 3,
    ):
        super().__init__(None if weights == "uniform" else WeightingNet(weighting_channels, weighting_scale, colours))
        self.weigh, self.m_step = WEIGH[pixel], M_STEPS[m_step]
        self.samples, self.eps, self.k = samples, eps, k
        self.move = MAPS["learned" if weights == "uniform" else weights]
        self.wc, self.e_every, self.reuse_mu = wc, e_every, reuse_mu
        self.needs_judge = self.helper is not None or wc != "one"
        self.of_whole_batch = ("wc=normalised",) if wc == "normalised" else ()
        self.e_step_is_due = True
        self.mu: list[Tensor] = []  # with reuse_mu, the E-step's, one per part of the batch

    @property
    def weighting(self) -> WeightingNet | None:
        return self.helper

    def begin_step(self, step: int) -> None:
        self.e_step_is_due, self.mu = (step + 1) % self.e_every == 0, []

    def helper_loss(self, sr: Tensor, target: Target, epoch: float) -> Tensor | None:
        """E-step: the mean of -log WC(w), one w ~ MVB(g_phi(hr, sr)) per image; sr (B,3,H,W) is a constant.

        None if no E-step is due.
        """
        if self.helper is None or not self.e_step_is_due:
            return None
        sr = sr.detach()
        mu = self.helper(target.hr, sr, self.k(math.floor(epoch)))
        self.mu += [mu.detach()] * self.reuse_mu
        w = relaxed_bernoulli(mu, global_batch.global_rand(*mu.shape, device=mu.device))
        return -weight_criterion(w, sr, target, self.eps).log().mean()

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        """M-step: the weighted pixel loss of T new samples; gradients flow through the pixel error only."""
        with torch.no_grad():
            w = self.draw(sr, target.hr, self.k(math.floor(epoch)))
            wc = self.criterion(w, sr, target)
        return self.m_step.loss(w, wc, sr, target.hr, self.weigh)

    def draw(self, sr: Tensor, hr: Tensor, k: float) -> Tensor:
        """T samples of the M-step's weights (T,B,3,H,W); for uniform weights k, (1,1,1,1,1)."""
        if self.helper is None:
            return hr.new_full((1, 1, 1, 1, 1), k)
        mu = self.move(self.mu.pop(0) if self.mu else self.helper(hr, sr, k), k)
        return relaxed_bernoulli(mu, global_batch.global_rand(self.samples, *mu.shape, batch_dim=1, device=mu.device))

    def criterion(self, w: Tensor, sr: Tensor, target: Target) -> Tensor:
        """The WC (T,B) of each sample w (T,B,3,H,W), as the setting `wc` says."""
        if self.wc == "one":
            wc = w.new_ones(len(w), len(sr))
        else:
            wc = weight_criterion(w, sr, target, self.eps, self.m_step.far_eps)
        if self.wc == "normalised":
            wc = wc / global_batch.all_reduce_mean(wc.mean())
        return wc * (self.samples / len(w))  # the one uniform w stands for T samples

    def phase(self, epoch: float) -> int:
        """k in tenths: WC, and therefore the loss, grows with k."""
        return int(10 * self.k(math.floor(epoch)))

    def helper_parameters(self, epoch: float) -> list[nn.Parameter]:
        return super().helper_parameters(epoch) if self.e_step_is_due else []

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        criterion = {} if helper_loss is None else {"WC": math.exp(-helper_loss)}
        return criterion | {"k": self.k(math.floor(epoch))}
