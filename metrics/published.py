"""Published scores of bicubic upscaling, to verify benchmark data sets.

Sources, by protocol:
- paper: Table I of the TLW paper (arXiv 2301.10575), PSNR-Y and LPIPS (VGG, channels as BGR).
- standard: the bicubic rows common to most papers, such as Table 2 of the RCAN paper (arXiv 1807.02758). The tolerance
  allows for MATLAB's imresize, which rounds 8-bit images between its two passes.
- table2: not published; computed with the crop of the code released for the TLW paper's Table II.
"""

import math
import re
from pathlib import Path

IMAGES = {"Set5": 5, "Set14": 14, "BSDS100": 100, "Urban100": 100, "Manga109": 109}
ALIASES = {"bsds100": "BSDS100", "bsd100": "BSDS100", "b100": "BSDS100"} | {name.lower(): name for name in IMAGES}
# PSNR-Y in dB at x2, x3, x4 by protocol and data set.
PSNR_Y = {
    "paper": {
        "Set5": (33.9569, 30.6089, 28.5944),
        "Set14": (30.3250, 27.5664, 25.9904),
        "BSDS100": (29.7593, 27.3356, 26.0741),
        "Urban100": (27.0711, 24.5817, 23.2383),
        "Manga109": (31.2655, 27.2258, 25.1164),
    },
    "standard": {
        "Set5": (33.66, 30.39, 28.42),
        "Set14": (30.24, 27.55, 26.00),
        "BSDS100": (29.56, 27.21, 25.96),
        "Urban100": (26.88, 24.46, 23.14),
        "Manga109": (30.80, 26.95, 24.89),
    },
    "table2": {"Set5": (None, None, 28.6000), "Set14": (None, None, 26.0099)},
}
# LPIPS-vgg-BGR in the protocol "paper" at x2, x3, x4.
LPIPS_VGG_BGR = {
    "Set5": (0.1308, 0.2170, 0.2838),
    "Set14": (0.1912, 0.2951, 0.3677),
    "BSDS100": (0.2061, 0.3214, 0.4009),
    "Urban100": (0.1934, 0.3054, 0.3838),
    "Manga109": (0.0923, 0.1821, 0.2547),
}
TOLERANCE = {"paper": 2e-4, "standard": 0.03, "table2": 2e-4}
# dB to add to these: papers use the one grey image of Set14 as its own Y, in [0,255]; as RGB its Y lies in [16,235].
GREY = {"standard": {"Set14": 20 * math.log10(255 / 219) / 14}}


def dataset_of(folder: str | Path) -> str | None:
    """The data set named in the last three parts of a path, as in "Set5/HR" or "b100_x4"; None if none is."""
    for part in reversed(Path(folder).parts[-3:]):
        if found := re.match(rf"({'|'.join(ALIASES)})(?![0-9A-Za-z])", part.lower()):
            return ALIASES[found[1]]
    return None


def check_bicubic(folder: str | Path, protocol: str, scale: int, images: int, means: dict[str, float]) -> str | None:
    """Compare a bicubic row with the published one of the data set that the folder is named after.

    Args:
        images: the number of images in the folder.
        means: the row's mean scores by name, PSNR-Y among them.

    Returns a text such as "as published (Set5)", or None if there is no published row.
    """
    dataset = dataset_of(folder)
    if dataset is None or not 2 <= scale <= 4:
        return None
    published = PSNR_Y.get(protocol, {}).get(dataset, (None,) * 3)[scale - 2]
    if published is None:
        return None
    if images != IMAGES[dataset]:
        return f"{dataset} has {IMAGES[dataset]} images, not {images}"
    off = means["PSNR-Y"] - published - GREY.get(protocol, {}).get(dataset, 0)
    if not abs(off) <= TOLERANCE[protocol]:
        side = "above" if off > 0 else "below"
        return f"{abs(off):.{2 if protocol == 'standard' else 4}f} dB {side} {dataset}'s {published}"
    lpips = means.get("LPIPS-vgg-BGR", math.nan) - LPIPS_VGG_BGR[dataset][scale - 2]
    more = f"; LPIPS {lpips:+.4f} off" if protocol == "paper" and abs(lpips) > 1e-3 else ""
    source = "by the released code" if protocol == "table2" else "as published"
    return f"{source} ({dataset}){more}"
