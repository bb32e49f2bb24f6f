"""MATLAB-compatible bicubic downscaling by an integer factor, standard in super-resolution benchmarks.

The kernel is Keys' cubic convolution with a = -0.5 (R. Keys, "Cubic convolution interpolation for digital image
processing", IEEE Trans. ASSP 29(6), 1981), stretched by the scale for antialiasing, as in MATLAB's `imresize`. With an
integer factor all output pixels have the same taps, so a pass is a sum of strided slices.
"""

import numpy as np

# Output elements computed at a time: the accumulator and its operands fit the L2 cache.
_CHUNK = 16384


def _taps(scale: int) -> np.ndarray:
    """The symmetric taps of an output pixel, with sum 1: 4*scale for even scales, 4*scale - 1 for odd."""
    count = 4 * scale - scale % 2
    x = np.abs(np.arange(count) - (count - 1) / 2) / scale
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x <= 1, near, far)
    return weights / weights.sum()


def _shrink_rows(image: np.ndarray, scale: int) -> np.ndarray:
    """Downscale the first axis: (H,M) float64 -> (H/scale,M) float64."""
    rows, columns = image.shape
    weights = _taps(scale)
    last = len(weights) - 1
    # Symmetric padding repeats the image and its mirror image.
    before = (len(weights) - scale) // 2
    walk = np.arange(-before, rows + before) % (2 * rows)
    padded = image[np.minimum(walk, 2 * rows - 1 - walk)]

    out = np.zeros((rows // scale, columns))
    step = max(1, _CHUNK // columns)
    for start in range(0, len(out), step):
        total = out[start : start + step]

        def seen_by(tap: int) -> np.ndarray:
            first = start * scale + tap
            return padded[first : first + (len(total) - 1) * scale + 1 : scale]

        if last % 2 == 0:
            np.multiply(seen_by(last // 2), weights[last // 2], out=total)
        for tap in range(len(weights) // 2):
            pair = seen_by(tap) + seen_by(last - tap)
            pair *= weights[tap]
            total += pair
    return out


def imresize(image: np.ndarray, scale: int) -> np.ndarray:
    """Downscale an image as MATLAB's `imresize(image, 1/scale, 'bicubic')` does.

    image: (H,W) or (H,W,C) in any range; H and W are multiples of scale >= 1.
    Returns float64 (H/scale, W/scale[, C]), neither rounded nor clipped: it may exceed the input's range slightly.
    The order of summation is fixed: a pixel's value depends only on the pixels under its kernel, bit for bit.

    Raises ValueError if scale, the shape or the sizes do not fit.
    """
    image = np.asarray(image, dtype=np.float64)
    if scale != int(scale) or scale < 1:
        raise ValueError(f"scale={scale} is not an integer >= 1; use 2, 3 or 4")
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"image has shape {image.shape}; pass a non-empty (H,W) or (H,W,C) array")
    height, width = image.shape[:2]
    if height % scale or width % scale:
        raise ValueError(
            f"image size {height}x{width} is not divisible by scale={scale}; "
            f"crop it to {height // scale * scale}x{width // scale * scale}"
        )
    scale = int(scale)
    small = _shrink_rows(image.reshape(height, -1), scale).reshape(-1, width, *image.shape[2:])
    # The second pass works on the transposed image, which is small by now.
    small = small.swapaxes(0, 1)
    small = _shrink_rows(small.reshape(width, -1), scale).reshape(-1, *small.shape[1:])
    return np.ascontiguousarray(small.swapaxes(0, 1))
