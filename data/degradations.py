"""LR images with blur, noise and JPEG artefacts, made from HR patch by patch.

The classical degradation, Eq. 1 of Real-ESRGAN (Wang et al., ICCV Workshops 2021):

    y = JPEG( (x * k) down_s + n )

x the HR image, k a Gaussian blur, down_s MATLAB's bicubic downscaling, n Gaussian noise. The strengths of blur, noise
and JPEG compression are random.
"""

import math
from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from .imresize import imresize

BLUR = (0.2, 3.0)  # standard deviation of k, HR pixels
NOISE = (0.0, 25.0)  # standard deviation of n, 8-bit levels
GREY_NOISE = 0.4  # probability that all channels have the same noise
QUALITY = (30, 95)  # of JPEG
_TRUNCATE = 4.0  # radius of the blur in standard deviations, scipy's default
_REACH = 2  # how far the kernel of `imresize` reaches beyond an LR pixel's own HR pixels, LR pixels


def blur_noise_jpeg(
    hr: np.ndarray, start: tuple[int, int], size: tuple[int, int], scale: int, random: np.random.Generator
) -> np.ndarray:
    """Return the degraded LR of a part of an image, uint8 (height/scale, width/scale, 3 or 1).

    Args:
        hr: the whole image, uint8 (H,W,3) or grey (H,W,1); blur and downscaling also use pixels around the part.
        start, size: the part's (top, left) and (height, width) in HR pixels, multiples of scale.
        random: the only source of randomness.
    """
    sigma, noise = random.uniform(*BLUR), random.uniform(*NOISE)
    quality, channels = int(random.integers(QUALITY[0], QUALITY[1] + 1)), 1 if random.random() < GREY_NOISE else 3
    margin = (math.ceil(_TRUNCATE * sigma / scale) + _REACH) * scale
    before = [min(x, margin) for x in start]
    window = tuple(slice(x - b, x + length + margin) for x, b, length in zip(start, before, size))
    part = hr[window].astype(np.float64)
    for axis in (0, 1):
        part = gaussian_filter1d(part, sigma, axis, mode="reflect", truncate=_TRUNCATE)
    top, left, height, width = (x // scale for x in (*before, *size))
    lr = imresize(part, scale)[top : top + height, left : left + width]
    lr = lr + random.normal(0, noise, (height, width, min(channels, hr.shape[2])))
    file = BytesIO()
    levels = np.rint(lr).clip(0, 255).astype(np.uint8)
    Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0]).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))[..., : levels.shape[2]]


# The values of --degradation; None: `imresize` only, as in `data.make_pair`.
DEGRADATIONS = {"bicubic": None, "blur-noise-jpeg": blur_noise_jpeg}
