"""PSNR and SSIM on luma, in float64, one value per image.

SSIM: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE Trans. Image Processing 13(4), 2004. Luma: ITU-R BT.601 with studio swing, as MATLAB's rgb2ycbcr.
"""

import torch
from torch import Tensor

_PEAK = 255.0
_WINDOW, _SIGMA = 11, 1.5


def luma(x: Tensor) -> Tensor:
    """RGB (B,3,H,W) in [-1,1] -> Y (B,1,H,W) in [16,235], float64. Values outside the range are carried on."""
    red, green, blue = x.double().add(1).div(2).split(1, dim=1)
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def quantize(x: Tensor) -> Tensor:
    """Clamp x to [-1,1] and round it to the 256 levels of an 8-bit image; the shape and dtype stay."""
    levels = x.double().clamp(-1, 1).add(1).mul(127.5).round()
    return (levels / 255 * 2 - 1).to(x.dtype)


def psnr_y(sr: Tensor, hr: Tensor, shave: int = 0) -> Tensor:
    """PSNR in dB on luma, peak 255, of RGB images (B,3,H,W) in [-1,1]; (B,) float64, inf where they are equal.

    shave: pixels to leave out at each border. Neither clamps nor rounds: see `quantize`.
    Raises ValueError where the shapes differ or shave leaves nothing.
    """
    sr, hr = _shaved_luma(sr, hr, shave, smallest=1)
    return 10 * torch.log10(_PEAK**2 / (sr - hr).square().mean(dim=(1, 2, 3)))


def ssim_y(sr: Tensor, hr: Tensor, shave: int = 0) -> Tensor:
    """SSIM on luma of RGB images (B,3,H,W) in [-1,1]; (B,) float64, 1 where they are equal.

    Gaussian window 11x11 with sigma 1.5 where it fits wholly ("valid"), K1 = 0.01, K2 = 0.03, L = 255, no downsampling.
    shave: pixels to leave out at each border. Neither clamps nor rounds: see `quantize`.
    Raises ValueError where the shapes differ or an image is smaller than the window after shaving.
    """
    sr, hr = _shaved_luma(sr, hr, shave, smallest=_WINDOW)
    moments = _blur(torch.cat([sr, hr, sr * sr, hr * hr, sr * hr], dim=1))
    mean_sr, mean_hr, square_sr, square_hr, product = moments.split(1, dim=1)
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    means = mean_sr * mean_hr
    squared_means = mean_sr.square() + mean_hr.square()
    similarity = (2 * means + c1) * (2 * (product - means) + c2)
    similarity /= (squared_means + c1) * (square_sr + square_hr - squared_means + c2)
    return similarity.mean(dim=(1, 2, 3))


def _shaved_luma(sr: Tensor, hr: Tensor, shave: int, smallest: int) -> tuple[Tensor, Tensor]:
    if sr.shape != hr.shape or sr.ndim != 4 or sr.shape[1] != 3:
        raise ValueError(f"sr {tuple(sr.shape)} and hr {tuple(hr.shape)} do not match; pass two (B,3,H,W) of one size")
    if shave < 0:
        raise ValueError(f"shave={shave} is negative; use 0 or more")
    height, width = sr.shape[-2:]
    if min(height, width) - 2 * shave < smallest:
        raise ValueError(
            f"image size {height}x{width} with shave={shave} is too small; "
            f"expected at least {smallest + 2 * shave} pixels each way, use larger images"
        )
    inside = (..., slice(shave, height - shave), slice(shave, width - shave))
    return luma(sr[inside]), luma(hr[inside])


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window's weighted mean, (B,C,H,W) -> (B,C,H-10,W-10).

    Sums of slices, mirrored taps first: torch's float64 convolution on the CPU is several times slower.
    """
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    window = (window / window.sum()).tolist()
    middle = _WINDOW // 2
    for dim in (-2, -1):
        length = x.shape[dim] - _WINDOW + 1
        total = x.narrow(dim, middle, length) * window[middle]
        for tap in range(middle):
            pair = x.narrow(dim, tap, length) + x.narrow(dim, _WINDOW - 1 - tap, length)
            total.add_(pair, alpha=window[tap])
        x = total
    return x
