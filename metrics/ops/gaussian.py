"""The Gaussian window of SSIM: 11 pixels, sigma 1.5.

Wang, Bovik, Sheikh and Simoncelli, IEEE Trans. Image Processing 13(4), 2004.
"""

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels


def gaussian_window(dtype: torch.dtype) -> Tensor:
    """The window (11,) along one axis, with sum 1; the 2D window is its outer product with itself."""
    offsets = torch.arange(WINDOW, dtype=dtype) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return window / window.sum()
