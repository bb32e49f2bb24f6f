"""Pixel-level self-paced learning: badly reconstructed pixels first, the others in later epochs.

Lin et al., "Pixel-Level Self-Paced Learning for Super-Resolution", ICASSP 2020, arXiv 2003.03113:

    w = max * exp(-((SSIM(hr, sr) + 1) / sigma)^2),  sigma = alpha * epoch + beta,  loss = mean error of w*sr to w*hr

per pixel and channel, w a constant. As in the authors' code, MSE squares w, and SSIM's map is that
of an 11x11 Gaussian window (sigma 1.5) on the zero-padded image. Two differences from that code:

- It takes SSIM of images in [0,255] with the constants of images in [0,1] (0.01^2 and 0.03^2). Next to variances of
  such images these are nothing, so that flat areas have the SSIM of their rounding errors. Here SSIM sees [0,1].
- Its epochs begin at 0 plus one step, where every w is 0 in float32 and nothing learns until sigma has grown. Here
  sigma is at least MIN_SIGMA; with alpha = 1 that is the sigma of half an epoch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Loss
from .pixel import absolute_error, squared_error
from .target import Target

WINDOW, DEVIATION = 11, 1.5
MIN_SIGMA = 0.5  # the smallest w / max is then exp(-16) = 1e-7: little, but Adam's steps do not depend on scale
ERRORS = {"L1": absolute_error, "MSE": squared_error}


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each pixel and channel, with zeros around: a, b (B,C,H,W) in [0,1] -> (B,C,H,W) in [-1,1]."""
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
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1) * structure


class PSPL(Loss):
    """PSPL on a pixel loss, "L1" or "MSE"."""

    def __init__(self, pixel: str = "L1", *, alpha: float = 1.0, beta: float = 0.0, maximum: float = 2.0):
        super().__init__()
        self.error = ERRORS[pixel]
        self.alpha, self.beta, self.maximum = alpha, beta, maximum

    def sigma(self, epoch: float) -> float:
        """The width of the attention in this epoch."""
        return max(self.alpha * epoch + self.beta, MIN_SIGMA)

    @torch.no_grad()
    def weight(self, sr: Tensor, hr: Tensor, epoch: float) -> Tensor:
        """The attention w: sr, hr (B,3,H,W) in [-1,1] -> (B,3,H,W) in (0,maximum]."""
        with torch.autocast(sr.device.type, enabled=False):  # variances are differences of like numbers
            similarity = ssim_map(hr / 2 + 0.5, sr / 2 + 0.5)
        return self.maximum * torch.exp(-((similarity + 1) / self.sigma(epoch)).square())

    def forward(self, sr: Tensor, target: Target, epoch: float, features: Tensor | None = None) -> Tensor:
        weight = self.weight(sr, target.hr, epoch)
        return self.error(weight * sr, weight * target.hr).mean()

    def log_scalars(self, helper_loss: float | None, epoch: float) -> dict[str, float]:
        return {"sigma": self.sigma(epoch)}
