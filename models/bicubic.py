"""Bicubic upscaling. Keys, "Cubic convolution interpolation for digital image processing", 1981.

PyTorch's `interpolate` (a = -0.75) gives the bicubic rows of the TLW paper's Table I, MATLAB's `imresize` (a = -0.5,
symmetric borders) those of most other papers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def keys_kernel(x: Tensor, a: float) -> Tensor:
    """Keys' piecewise cubic with parameter a, 0 outside [-2,2]."""
    x = x.abs()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


class Bicubic(nn.Module):
    """lr (B,3,h,w) -> (B,3,s*h,s*w) as F.interpolate computes it (a = -0.75, align_corners=False)."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale
        self.receptive_radius = 2

    def forward(self, lr: Tensor) -> Tensor:
        return F.interpolate(lr, scale_factor=self.scale, mode="bicubic", align_corners=False)


class MatlabBicubic(nn.Module):
    """lr (B,3,h,w) -> (B,3,s*h,s*w) as MATLAB's imresize(lr, s, 'bicubic') computes it."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale
        self.receptive_radius = 2
        # The s output pixels of one input pixel lie at u = (i + 1/2)/s - 1/2; a window of 5 covers all their taps.
        u = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        taps = keys_kernel(u[:, None] - torch.arange(-2, 3), a=-0.5)
        kernel = torch.einsum("iy,jx->ijyx", taps, taps).reshape(scale**2, 1, 5, 5)
        self.kernel: Tensor
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        b, c, h, w = lr.shape
        rows, columns = (_mirrored(n, lr.device) for n in (h, w))
        padded = lr[:, :, rows][:, :, :, columns].reshape(b * c, 1, h + 4, w + 4)
        phases = F.conv2d(padded.to(self.kernel.dtype), self.kernel).to(lr.dtype)
        return F.pixel_shuffle(phases, self.scale).reshape(b, c, self.scale * h, self.scale * w)


def _mirrored(n: int, device) -> Tensor:
    """Indices -2 .. n+1, mirrored at the borders (border pixel repeated) until they are in 0 .. n-1."""
    i = torch.arange(-2, n + 2, device=device) % (2 * n)
    return torch.where(i < n, i, 2 * n - 1 - i)
