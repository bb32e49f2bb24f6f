"""Perceptual metrics and judges, PSNR and SSIM: they compare an SR image with its reference.

The classes below are imported at their first use: LPIPS needs two packages that take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import PerceptualMetric
    from .extractors import FeatureDistance, build_extractor
    from .ms_ssim import MSSSIM
    from .perceptual import LPIPS
    from .tiny import Tiny

__all__ = ["LPIPS", "MSSSIM", "FeatureDistance", "PerceptualMetric", "Tiny", "build_extractor"]

_MODULES = {
    "FeatureDistance": "extractors",
    "LPIPS": "perceptual",
    "MSSSIM": "ms_ssim",
    "PerceptualMetric": "base",
    "Tiny": "tiny",
    "build_extractor": "extractors",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
