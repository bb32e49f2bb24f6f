"""1 - MS-SSIM, a judge that needs no weights, for comparison with the deep ones.

Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", Asilomar 2003.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deep_features import RangeCheck, distance_to

_WINDOW, _SIGMA = 11, 1.5
_SHARES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of the five scales, fine to coarse
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the range of values is 2
_PIXEL_BYTES = 300  # activations that one image's pixel holds at the peak, with a gradient
_LEAST = 1e-4  # a scale's similarity may be negative; its power has no derivative at 0


class MSSSIM(nn.Module):
    """forward(a, b), (B,3,H,W) RGB in [-1,1] -> 1 - MS-SSIM (B,), the mean over the channels; 0 where they are equal.

    Images below 176 pixels have as many of the five scales as hold an 11x11 window, with exponents that add up to
    the same sum. `name`, `min_size`, `memory` and `with_reference` are as in `DeepDistance`. Computed in float32, under
    autocast too.
    """

    name, min_size = "1-MS-SSIM", _WINDOW

    def __init__(self, memory: int = 4 << 30, check_range: bool = True) -> None:
        super().__init__()
        offsets = torch.arange(_WINDOW) - _WINDOW // 2
        window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
        self.register_buffer("window", (window / window.sum()).repeat(3, 1, 1, 1))
        self.chunk_pixels = (memory // _PIXEL_BYTES,) * 2
        self.check_range = RangeCheck(check_range)

    def blur(self, images: Tensor) -> Tensor:
        """The Gaussian window's weighted mean, (N,3,H,W) -> (N,3,H-10,W-10)."""
        return F.conv2d(F.conv2d(images, self.window, groups=3), self.window.mT, groups=3)

    def statistics(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) -> at each scale, fine to coarse, the images and the means and variances in their windows."""
        found = []
        with torch.autocast(images.device.type, enabled=False):
            level = images.float()
            while len(found) < 3 * len(_SHARES) and min(level.shape[-2:]) >= _WINDOW:
                mean = self.blur(level)
                found += [level, mean, self.blur(level.square()) - mean.square()]
                level = F.avg_pool2d(level, 2)
        return found

    def distance(self, images: Tensor, reference: list[Tensor]) -> Tensor:
        """Images (N,3,H,W) and the statistics of B references, N a multiple of B -> (N,)."""
        scales = list(zip(reference[::3], reference[1::3], reference[2::3]))
        shares = [share * sum(_SHARES) / sum(_SHARES[: len(scales)]) for share in _SHARES[: len(scales)]]
        with torch.autocast(images.device.type, enabled=False):
            level = images.float()
            similarity = 1.0
            for i, (of_reference, share) in enumerate(zip(scales, shares)):
                r, r_mean, r_variance = (x.repeat(len(level) // len(x), 1, 1, 1) for x in of_reference)
                mean = self.blur(level)
                variance = self.blur(level.square()) - mean.square()
                covariance = self.blur(level * r) - mean * r_mean
                here = (2 * covariance + _C2) / (variance + r_variance + _C2)
                if i == len(scales) - 1:  # luminance counts at the coarsest scale alone, and from black on
                    light, r_light = mean + 1, r_mean + 1
                    here = here * (2 * light * r_light + _C1) / (light.square() + r_light.square() + _C1)
                similarity = similarity * here.mean(dim=(-2, -1)).clamp(min=_LEAST) ** share
                level = F.avg_pool2d(level, 2)
        return 1 - similarity.mean(dim=1)

    def with_reference(self, reference: Tensor) -> Callable[[Tensor], Tensor]:
        """The distance to reference (B,3,H,W): a function of images (...,B,3,H,W) -> (...,B), once differentiable.

        Raises ValueError where the reference is smaller than the window or its values are not in [-1,1].
        """
        if min(reference.shape[-2:]) < _WINDOW:
            size = "x".join(map(str, reference.shape[-2:]))
            raise ValueError(f"images of {size}; MS-SSIM needs {_WINDOW} pixels each way, use larger ones")
        self.check_range(reference)
        return distance_to(reference, self.statistics, self.distance, self.chunk_pixels)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.with_reference(b)(a)
