"""Measure an SR network on images under a named protocol: PSNR-Y, SSIM-Y and perceptual metrics."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .base import PerceptualMetric
from .fidelity import quantize
from .judges import build_metric
from .ops.gaussian import WINDOW
from .references import ReferenceCache

MEMORY = 2 << 30  # bytes
HIGHER_IS_BETTER = {"psnr-y", "ssim-y"}  # all others are distances


class Protocol(NamedTuple):
    """The cropping, rounding and shaving of images before they are compared.

    multiple: HR is cropped at the bottom and right to multiples of it (None: of the scale). eight_bit: LR and SR
    are rounded to 8 bits. shave: PSNR and SSIM leave out `scale` pixels at each border. LPIPS sees the whole image.
    """

    multiple: int | None
    eight_bit: bool
    shave: bool


PROTOCOLS = {
    # Reproduces the bicubic rows of the TLW paper's Table I to the fourth decimal.
    "paper": Protocol(multiple=12, eight_bit=False, shave=False),
    # The field's convention, rounded in RGB (some tables round Y instead: 0.02 dB less for bicubic).
    "standard": Protocol(multiple=None, eight_bit=True, shave=True),
}


def check_sizes(pairs, metrics: Mapping[str, PerceptualMetric], protocol: str) -> None:
    """Raise ValueError, naming the image, if one is too small for SSIM's window or a metric's network."""
    window = WINDOW + (2 * pairs.scale if PROTOCOLS[protocol].shave else 0)
    needed = max([window, *(metric.min_size for metric in metrics.values())])
    for path, (height, width) in zip(pairs.paths, pairs.sizes):
        if min(height, width) < needed:
            names = ", ".join(["SSIM-Y", *metrics])
            raise ValueError(f"{path} is {height}x{width}; {names} need {needed} pixels each way; leave it out")


def build_metrics(nets, weights: tuple = (), bgr: bool = False, memory: int = MEMORY) -> dict[str, PerceptualMetric]:
    """Build the perceptual metrics `nets`, keyed by their full names.

    Args:
        nets: names in METRICS.
        weights: local backbone files.
        bgr: show LPIPS the channels in OpenCV's order.
        memory: bytes for a metric's activations; larger images are measured in tiles.

    Raises ValueError for an unknown name and for weights that cannot be had.
    """
    metrics = [build_metric(net, weights, memory, bgr) for net in nets]
    return {metric.name: metric for metric in metrics}


@torch.inference_mode()
def evaluate(
    upscale: Callable[[Tensor], Tensor],
    pairs,
    metrics: Mapping[str, PerceptualMetric],
    protocol: str,
    device="cpu",
    label: str = "",
    precision: str = "fp32",
    cache: ReferenceCache | None = None,
) -> dict[str, list[float]]:
    """Return PSNR-Y, SSIM-Y and the given metrics of upscale on every image, in the order of the images.

    Args:
        upscale: lr (1,3,h,w) in [-1,1] -> sr (1,3,s*h,s*w), such as `models.ops.tiled.TiledUpscaler`.
        pairs: a sequence of lr (3,h,w), hr (3,H,W) in [-1,1] with their `scale`.
        protocol: a name in PROTOCOLS.
        label: what the progress bar says; it is shown even without a terminal if it is not empty.
        precision: the network's, "fp32" or "bf16"; metrics never compute in less than fp32.
        cache: keeps what metrics compute of the HR images for the next call with the same arguments.
    """
    p = PROTOCOLS[protocol]
    scores = {name: [] for name in ("PSNR-Y", "SSIM-Y", *metrics)}
    cache = ReferenceCache() if cache is None else cache
    references = cache.references(pairs, metrics, pairs.scale if p.shave else 0, device)
    bar = tqdm(references, label, len(pairs), leave=False, disable=None if label else True, unit="image")
    for lr, fidelity, distances in bar:
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=precision == "bf16"):
            sr = upscale(lr).float()
        sr = quantize(sr) if p.eight_bit else sr.clamp_(-1, 1)
        for name, value in zip(("PSNR-Y", "SSIM-Y"), fidelity(sr)):
            scores[name].append(value)
        for name, distance in distances.items():
            scores[name].append(distance(sr))
    return {name: torch.cat(values).tolist() if values else [] for name, values in scores.items()}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
