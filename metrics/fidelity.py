"""PSNR and SSIM on luma and on RGB, in float64, in strips of rows that fit the CPU's cache.

SSIM: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural
similarity", IEEE Trans. Image Processing 13(4), 2004. Luma: ITU-R BT.601 with studio swing, as MATLAB's rgb2ycbcr.
"""

from typing import Any

import torch
from torch import Tensor

from .ops.gaussian import WINDOW, gaussian_window

_PEAK = 255.0
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_STRIP = 1 << 15  # pixels of a strip: 256 KB per map


def luma(x: Tensor) -> Tensor:
    """RGB (B,3,H,W) in [-1,1] -> Y (B,1,H,W) in [16,235], float64; values are not clamped.

    Grey (B,1,H,W) in [-1,1] -> (B,1,H,W) in [0,255], as papers do for grey images.
    """
    if x.shape[1] == 1:
        return x.double().add(1).mul_(127.5)
    red, green, blue = x.double().add(1).div_(2).split(1, dim=1)
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def _luma_and_rgb(x: Tensor) -> Tensor:
    """RGB (B,3,H,W) in [-1,1] -> Y and R, G, B in [0,255], (B,4,H,W) float64."""
    return torch.cat([luma(x), x.double().add(1).mul_(127.5)], dim=1)


def quantize(x: Tensor) -> Tensor:
    """Clamp x to [-1,1] and round it to the 256 levels of 8-bit images; shape and dtype stay."""
    levels = x.double().clamp(-1, 1).add_(1).mul_(127.5).round_()
    return levels.div_(255).mul_(2).sub_(1).to(x.dtype)


def psnr_y(sr: Tensor, hr: Tensor, shave: int = 0) -> Tensor:
    """PSNR in dB on luma, peak 255, of images (B,3 or 1,H,W) in [-1,1]; (B,) float64, inf if equal.

    shave: pixels to ignore at each border. Neither clamps nor rounds: see `quantize`.
    Raises ValueError if the shapes differ or shave leaves nothing.
    """
    sr, hr = _shaved(sr, hr, shave, smallest=1)
    squares: Any = sum(
        (luma(a) - luma(b)).square().sum(dim=(1, 2, 3)) for a, b in zip(_strips(sr, _STRIP), _strips(hr, _STRIP))
    )
    return _psnr(squares / hr[0, 0].numel())


def ssim_y(sr: Tensor, hr: Tensor, shave: int = 0) -> Tensor:
    """SSIM on luma of images (B,3 or 1,H,W) in [-1,1]; (B,) float64, 1 if equal.

    11x11 Gaussian window with sigma 1.5, without padding, K1 = 0.01, K2 = 0.03, L = 255, no downsampling.
    shave: pixels to ignore at each border. Neither clamps nor rounds: see `quantize`.
    Raises ValueError if the shapes differ or an image is smaller than the window after shaving.
    """
    return Fidelity(hr, shave)(sr)["SSIM-Y"]


class Fidelity:
    """PSNR and SSIM to one hr for many sr, both (B,3 or 1,H,W) in [-1,1]: sr -> values (B,) by name.

    Names: "PSNR-Y" and "SSIM-Y"; with rgb=True, for RGB images, also "PSNR-RGB", from the mean squared error over the
    three channels, and "SSIM-RGB", the mean SSIM of the channels. nbytes: the memory of hr's part. Raises ValueError as
    ssim_y does.
    """

    def __init__(self, hr: Tensor, shave: int = 0, rgb: bool = False) -> None:
        self.shape, self.shave = hr.shape, shave
        self.planes, self.strip = (_luma_and_rgb, _STRIP // 4) if rgb and hr.shape[1] == 3 else (luma, _STRIP)
        hr, _ = _shaved(hr, hr, shave, smallest=WINDOW)
        self.inside = hr.shape
        self.strips = []
        for y in map(self.planes, _strips(hr, self.strip, WINDOW - 1)):
            mean, square = _blur(torch.cat([y, y * y], dim=1)).chunk(2, dim=1)
            self.strips.append((y, mean, mean.square(), square))
        self.nbytes = sum(x.nbytes for strip in self.strips for x in strip)

    def __call__(self, sr: Tensor) -> dict[str, Tensor]:
        if sr.shape != self.shape:
            _shaved(sr, torch.empty(self.shape, device="meta"), self.shave, smallest=1)
        height, width = self.shape[-2:]
        sr = sr[..., self.shave : height - self.shave, self.shave : width - self.shave]
        squares: Any = 0
        similarity: Any = 0
        last = len(self.strips) - 1
        for i, (part, (hr, mean_hr, mean_hr2, square_hr)) in enumerate(
            zip(_strips(sr, self.strip, WINDOW - 1), self.strips)
        ):
            y = self.planes(part)
            own = slice(None, None if i == last else mean_hr.shape[2])  # without the rows shared with the next strip
            squares = squares + (y - hr)[:, :, own].square().sum(dim=(2, 3))
            mean, square, product = _blur(torch.cat([y, y * y, y * hr], dim=1)).chunk(3, dim=1)
            means, mean2 = mean * mean_hr, mean.square() + mean_hr2
            here = (2 * means + _C1) * (2 * (product - means) + _C2)
            here /= (mean2 + _C1) * (square + square_hr - mean2 + _C2)
            similarity = similarity + here.sum(dim=(2, 3))
        height, width = self.inside[-2:]
        mse = squares / (height * width)
        # For equal images rounding may give a little more than 1.
        ssim = (similarity / ((height - WINDOW + 1) * (width - WINDOW + 1))).clamp(max=1)
        scores = {"PSNR-Y": _psnr(mse[:, 0]), "SSIM-Y": ssim[:, 0]}
        if self.planes is _luma_and_rgb:
            scores |= {"PSNR-RGB": _psnr(mse[:, 1:].mean(dim=1)), "SSIM-RGB": ssim[:, 1:].mean(dim=1)}
        return scores


def _psnr(mse: Tensor) -> Tensor:
    return 10 * torch.log10(_PEAK**2 / mse)


def _strips(x: Tensor, pixels: int, overlap: int = 0) -> list[Tensor]:
    """Split x (B,C,H,W) into strips (B,C,h,W) of about `pixels` pixels that overlap by `overlap` rows."""
    height, width = x.shape[-2:]
    rows = max(1, pixels // width)
    return [x[..., first : first + rows + overlap, :] for first in range(0, height - overlap, rows)]


def _shaved(sr: Tensor, hr: Tensor, shave: int, smallest: int) -> tuple[Tensor, Tensor]:
    if sr.shape != hr.shape or sr.ndim != 4 or sr.shape[1] not in (1, 3):
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
    return sr[inside], hr[inside]


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window's weighted mean, (B,C,H,W) -> (B,C,H-10,W-10).

    As sums of slices, because torch's float64 convolution on the CPU is several times slower.
    """
    window = gaussian_window(torch.float64).tolist()
    middle = WINDOW // 2
    for dim in (-2, -1):
        length = x.shape[dim] - WINDOW + 1
        total = x.narrow(dim, middle, length) * window[middle]
        for tap in range(middle):
            pair = x.narrow(dim, tap, length) + x.narrow(dim, WINDOW - 1 - tap, length)
            total.add_(pair, alpha=window[tap])
        x = total
    return x
