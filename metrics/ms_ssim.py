"""1 - MS-SSIM, a judge without weights, for comparison with the deep ones.

Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import PerceptualMetric, ReferenceDistance
from .deep_features import RangeCheck
from .ops.chunks import ChunkedReferenceDistance
from .ops.gaussian import WINDOW, gaussian_window

_SHARES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of the five scales, fine to coarse
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the range of values is 2
_PIXEL_BYTES = 300  # peak activations per pixel, with a gradient
_MIN_SIMILARITY = 1e-4  # a scale's similarity may be negative, and its power has no derivative at 0


class MSSSIM(PerceptualMetric):
    """1 - MS-SSIM: a, b (B,3,H,W) RGB in [-1,1] -> (B,), the mean over the channels; 0 if a equals b.

    Images below 176 pixels use only the scales that hold an 11x11 window, with exponents rescaled to the same sum.
    Computed in float32, under autocast too. `memory` and `check_range` are as in `DeepDistance`. Raises ValueError for
    images below 11 pixels.
    """

    window: Tensor

    def __init__(self, memory: int = 4 << 30, check_range: bool = True) -> None:
        super().__init__("1-MS-SSIM", min_size=WINDOW)
        self.register_buffer("window", gaussian_window(torch.float32).repeat(3, 1, 1, 1))
        self.chunk_pixels = memory // _PIXEL_BYTES, memory // _PIXEL_BYTES
        self.check_range = RangeCheck(check_range)

    def blur(self, images: Tensor) -> Tensor:
        """The Gaussian window's weighted mean, (N,3,H,W) -> (N,3,H-10,W-10)."""
        return F.conv2d(F.conv2d(images, self.window, groups=3), self.window.mT, groups=3)

    def statistics(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) -> for each scale, fine to coarse: images, and means and variances of their windows."""
        found = []
        with torch.autocast(images.device.type, enabled=False):
            level = images.float()
            while len(found) < 3 * len(_SHARES) and min(level.shape[-2:]) >= WINDOW:
                mean = self.blur(level)
                found += [level, mean, self.blur(level.square()) - mean.square()]
                level = F.avg_pool2d(level, 2)
        return found

    def compare(self, images: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Images (N,3,H,W) and the statistics of B references, N a multiple of B -> distances (N,)."""
        scales = list(zip(reference[::3], reference[1::3], reference[2::3]))
        shares = [share * sum(_SHARES) / sum(_SHARES[: len(scales)]) for share in _SHARES[: len(scales)]]
        with torch.autocast(images.device.type, enabled=False):
            level = images.float()
            similarity = torch.ones((), device=images.device)
            for i, (of_reference, share) in enumerate(zip(scales, shares)):
                r, r_mean, r_variance = (x.repeat(len(level) // len(x), 1, 1, 1) for x in of_reference)
                mean = self.blur(level)
                variance = self.blur(level.square()) - mean.square()
                covariance = self.blur(level * r) - mean * r_mean
                here = (2 * covariance + _C2) / (variance + r_variance + _C2)
                if i == len(scales) - 1:  # luminance, with black as 0, counts at the coarsest scale only
                    light, r_light = mean + 1, r_mean + 1
                    here = here * (2 * light * r_light + _C1) / (light.square() + r_light.square() + _C1)
                similarity = similarity * here.mean(dim=(-2, -1)).clamp(min=_MIN_SIMILARITY) ** share
                level = F.avg_pool2d(level, 2)
        return 1 - similarity.mean(dim=1)

    def with_reference(self, reference: Tensor) -> ReferenceDistance:
        """Return the distance to reference (B,3,H,W): images (...,B,3,H,W) -> (...,B), once differentiable.

        Raises ValueError if the reference is smaller than the window or not in [-1,1].
        """
        if min(reference.shape[-2:]) < WINDOW:
            size = "x".join(map(str, reference.shape[-2:]))
            raise ValueError(f"images of {size}; MS-SSIM needs {WINDOW} pixels each way, use larger ones")
        self.check_range(reference)
        return ChunkedReferenceDistance(reference, self.statistics, self.compare, self.chunk_pixels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.with_reference(b)(a)
