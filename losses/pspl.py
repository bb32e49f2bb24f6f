"""Pixel-level self-paced learning: the loss attends to badly reconstructed pixels first, later to all.

Lin et al., "Pixel-Level Self-Paced Learning for Super-Resolution", ICASSP 2020, arXiv 2003.03113:

    w = max * exp(-((SSIM(hr, sr) + 1) / sigma)^2),  sigma = alpha * epoch + beta,  loss = mean error of w*sr to w*hr

per pixel and channel, w a constant; an epoch of the authors' code is 1,000 steps. As there, errors are of images
in [0,255], MSE squares w, and SSIM uses an 11x11 Gaussian window (sigma 1.5) on the zero-padded images.

- The range matters because w is tiny at first: in [-1,1] gradients would be LEVELS (L1) or LEVELS^2 (MSE) times
  smaller, and Adam's epsilon of 1e-8 would dominate the denominator of its first steps.
- The authors' code computes SSIM of images in [0,255] with the constants for [0,1], 0.01^2 and 0.03^2: ssim="authors".
  It changes w by half of its mean and more at sigma = 1, by 0.2 % at sigma = 20.
- In the authors' code sigma begins near 0, where every w is 0 in float32, and nothing learns until sigma is about 0.4.
  Here sigma is at least MIN_SIGMA, which is sigma after 500 of their steps if alpha = 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Loss
from .pixel import LEVELS, absolute_error, squared_error
from .target import Target

WINDOW, DEVIATION = 11, 1.5
MIN_SIGMA = 0.5
ERRORS = {"L1": absolute_error, "MSE": squared_error}
RANGES = {"standard": 1.0, "authors": 1 / 255}  # SSIM's data_range for images in [0,1]


def ssim_map(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """SSIM of each pixel and channel: a, b (B,C,H,W), padded with zeros -> (B,C,H,W).

    data_range: the range of values in SSIM's constants, (0.01 data_range)^2 and (0.03 data_range)^2.
    """
    position = torch.arange(WINDOW, device=a.device, dtype=a.dtype) - WINDOW // 2
    window = torch.exp(-position.square() / (2 * DEVIATION**2))
    window = window / window.sum()
    channels = a.shape[1]

    def blur(x: Tensor) -> Tensor:
        rows = window.view(1, 1, 1, WINDOW).expand(channels, -1, -1, -1)
        x = F.conv2d(x, rows, padding=(0, WINDOW // 2), groups=channels)
        return F.conv2d(x, rows.transpose(2, 3), padding=(WINDOW // 2, 0), groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1) * structure


def attention(similarity: Tensor, sigma: float, maximum: float) -> Tensor:
    """The weights w, in (0,maximum], of pixels with this SSIM."""
    return maximum * torch.exp(-((similarity + 1) / sigma).square())


class PSPL(Loss):
    """PSPL on a pixel loss, "L1" or "MSE".

    Args:
        alpha, beta: sigma's growth per epoch and its start.
        maximum: max, the weight of the worst pixels.
        epoch_steps: steps of begin_step that count as an epoch for sigma; None: sigma follows forward's epoch.
        ssim: the constants of SSIM, a name in RANGES.
    """

    def __init__(
        self,
        pixel: str = "L1",
        alpha: float = 1.0,
        beta: float = 0.0,
        maximum: float = 2.0,
        epoch_steps: int | None = None,
        ssim: str = "standard",
    ):
        super().__init__()
        self.error = ERRORS[pixel]
        self.alpha, self.beta, self.maximum = alpha, beta, maximum
        self.epoch_steps, self.data_range = epoch_steps, RANGES[ssim]
        self.step = 0

    def begin_step(self, step: int) -> None:
        self.step = step

    def sigma(self, epoch: float) -> float:
        """The width of the attention; grows with the epoch or with the steps, see epoch_steps."""
        epoch = epoch if self.epoch_steps is None else self.step / self.epoch_steps
        return max(self.alpha * epoch + self.beta, MIN_SIGMA)

    def phase(self, epoch: float) -> int:
        """A phase of the growing loss; within one, a perfect pixel's weight grows by at most a factor of e."""
        power = 1 if self.error is absolute_error else 2
        return round(power * (2 / self.sigma(epoch)) ** 2)

    @torch.no_grad()
    def weight(self, sr: Tensor, hr: Tensor, epoch: float) -> Tensor:
        """The attention w: sr, hr (B,3,H,W) in [-1,1] -> (B,3,H,W) in (0,maximum]."""
        # Variances are differences of nearly equal numbers, so no bf16; and float64 where SSIM's constants are as small
        # as float32's rounding errors, which would decide the SSIM of flat areas.
        with torch.autocast(sr.device.type, enabled=False):
            precise = torch.float64 if self.data_range < 1 else sr.dtype
            similarity = ssim_map(hr.to(precise) / 2 + 0.5, sr.to(precise) / 2 + 0.5, self.data_range)
        return attention(similarity, self.sigma(epoch), self.maximum).to(sr.dtype)

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        weight = LEVELS * self.weight(sr, target.hr, epoch)
        return self.error(weight * sr, weight * target.hr).mean()

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        return {"sigma": self.sigma(epoch)}
