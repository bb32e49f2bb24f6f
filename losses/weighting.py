"""The weighting network g_phi, its FixedSum activation and the sampler of loss weights.

Chaichi Mellatshahi and Kasaei, "Trainable Loss Weights in Super-Resolution", arXiv 2301.10575,
section III-B: Eq. (5), Fig. 3. As in the released code, the sampler is the binary Concrete relaxation (Maddison et al.,
ICLR 2017; Jang et al., ICLR 2017), independent for each pixel. The paper cites Wang and Yin's relaxed multivariate
Bernoulli (UAI 2020) instead, whose components are correlated through a Gaussian copula.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fixed_sum(p: Tensor, k: float) -> Tensor:
    """Move p (B,C,H,W) in (0,1) so that every channel's spatial mean is k; it stays in [0,1] (Eq. 5).

    If the mean is below k, every element moves towards 1 by the same share of its distance to 1; if above, every
    element shrinks by the same factor. Both keep the order of the pixels.
    """
    mean = p.mean(dim=(-2, -1), keepdim=True)
    below = mean < k
    # `where` inside the denominators keeps the branch not taken from giving 0/0 in the gradient.
    rise = (k - mean) / torch.where(below, 1 - mean, 1)
    shrink = k / torch.where(below, 1, mean)
    return torch.where(below, p + rise * (1 - p), p * shrink)


def relaxed_bernoulli(mu: Tensor, uniform: Tensor, temperature: float = 0.1) -> Tensor:
    """Differentiable, nearly binary samples in [0,1] of Bernoulli(mu), independent per pixel and channel.

    mu and uniform ~ U(0,1) broadcast: uniform (T,B,C,H,W) gives T samples of mu (B,C,H,W). As in the released code,
    both are first moved away from 0 and 1, so that logits are finite.
    """
    mu, noise = 0.999 * mu + 0.0005, 0.999 * uniform + 0.0005
    return torch.sigmoid((mu.logit() + noise.logit()) / temperature)


class WeightingNet(nn.Module):
    """g_phi of Fig. 3: the mean weight of each pixel, from the reference and the current SR image.

    forward(hr, sr, k), images (B,3,H,W) in [-1,1] -> mu (B,3,H,W) in [0,1] with mean k per image and channel: the means
    of the weights' multivariate Bernoulli distribution. 160,387 parameters by default.

    Args:
        channels: width of the hidden layers.
        scale: 2 is not the paper's: the same layers at half the resolution (pixel unshuffle before, pixel shuffle
            after them), with a third of the multiplications.
        colours: channels of the images, 3 or 1.

    receptive_radius: that of `logits` in eval mode, in pixels at the layers' resolution.
    """

    receptive_radius = 7  # 3 + 2 + 1 + 1

    def __init__(self, channels: int = 64, scale: int = 1, colours: int = 3):
        super().__init__()
        self.scale = scale
        self.conv = nn.Sequential(
            nn.Conv2d(2 * colours * scale**2, channels, 7, padding=3),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 5, padding=2),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, colours * scale**2, 3, padding=1),
        )

    def logits(self, images: Tensor) -> Tensor:
        """hr and sr, (B,6,H,W) -> mu (B,3,H,W) before the sigmoid and fixed_sum."""
        if self.scale == 1:
            return self.conv(images)
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.scale, 0, -height % self.scale), mode="replicate")
        logits = F.pixel_shuffle(self.conv(F.pixel_unshuffle(images, self.scale)), self.scale)
        return logits[..., :height, :width]

    def forward(self, hr: Tensor, sr: Tensor, k: float) -> Tensor:
        # Under autocast the convolutions may run in bf16; sums over a whole image must not.
        logits = self.logits(torch.cat([hr, sr], dim=1)).to(hr.dtype)
        return fixed_sum(torch.sigmoid(logits), k)
