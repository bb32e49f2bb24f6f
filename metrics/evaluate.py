"""Measure an SR network on images under a named protocol: PSNR-Y, SSIM-Y and perceptual metrics."""

import math
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

    multiple: HR is cropped at the bottom and right to multiples of it (None: of the scale). eight_bit: LR and SR are
    rounded to 8 bits. shave: PSNR and SSIM ignore `scale` pixels at each border; perceptual metrics do not.
    """

    multiple: int | None
    eight_bit: bool
    shave: bool

    def border(self, scale: int) -> int:
        """The width in pixels of the border that PSNR and SSIM ignore."""
        return scale if self.shave else 0


PROTOCOLS = {
    # Reproduces PSNR in the bicubic rows of the TLW paper's Table I to four decimals on Urban100, Set5, Set14, BSDS100.
    "paper": Protocol(multiple=12, eight_bit=False, shave=False),
    # The usual convention, with RGB rounded (some papers round Y instead: 0.02 dB less for bicubic).
    "standard": Protocol(multiple=None, eight_bit=True, shave=True),
    # As in the code released for the TLW paper's Table II: HAT's windows of 7 at x4.
    "table2": Protocol(multiple=28, eight_bit=False, shave=False),
}


def check_scale(protocol: str, scale: int) -> None:
    """Raise ValueError if the protocol's crop does not suit the scale."""
    multiple = PROTOCOLS[protocol].multiple
    if multiple and multiple % scale:
        others = " or ".join(name for name, p in PROTOCOLS.items() if not (p.multiple and p.multiple % scale))
        raise ValueError(
            f"--protocol {protocol}: crops to multiples of {multiple}, which x{scale} does not divide; use {others}"
        )


def least_size(scale: int, metrics: Mapping[str, PerceptualMetric], protocol: str, inside: bool = False) -> int:
    """The smallest height and width of an image that SSIM's window and the metrics accept.

    inside: the metrics, too, ignore the border that the protocol shaves.
    """
    border = PROTOCOLS[protocol].border(scale)
    return max([WINDOW + 2 * border, *(metric.min_size + 2 * border * inside for metric in metrics.values())])


def check_sizes(pairs, metrics: Mapping[str, PerceptualMetric], protocol: str) -> None:
    """Raise ValueError, naming the image, if one is too small for SSIM's window or a metric."""
    needed = least_size(pairs.scale, metrics, protocol)
    for path, (height, width) in zip(pairs.paths, pairs.sizes):
        if min(height, width) < needed:
            raise ValueError(too_small(path, (height, width), needed, metrics, protocol) + "; leave it out")


def too_small(path, size: tuple[int, int], needed: int, metrics: Mapping[str, PerceptualMetric], protocol: str) -> str:
    """The error message for an image of this size (H,W)."""
    names = ", ".join(["SSIM-Y", *metrics])
    return f"{path} is {size[0]}x{size[1]} as protocol {protocol} crops it; {names} need {needed} pixels each way"


def build_metrics(nets, weights: tuple = (), bgr: bool = False, memory: int = MEMORY) -> dict[str, PerceptualMetric]:
    """Build the perceptual metrics `nets`, keyed by their full names.

    Args:
        nets: names in METRICS.
        weights: local backbone files.
        bgr: give LPIPS the channels in OpenCV's order, BGR.
        memory: bytes for a metric's activations; larger images are measured in tiles.

    Raises ValueError for an unknown name and for weights that cannot be read or downloaded.
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
        pairs: a sequence of lr (3,h,w), hr (3,H,W) in [-1,1], with an attribute `scale`, made for the protocol.
        protocol: a name in PROTOCOLS.
        label: the progress bar's label, seen on terminals only; "": no bar.
        precision: the network's, "fp32" or "bf16"; metrics always compute in fp32 or more.
        cache: keeps the HR images' features for later calls with the same pairs and metrics.
    """
    p = PROTOCOLS[protocol]
    scores = {name: [] for name in ("PSNR-Y", "SSIM-Y", *metrics)}
    cache = ReferenceCache() if cache is None else cache
    references = cache.references(pairs, metrics, p.border(pairs.scale), device)
    bar = tqdm(references, label, len(pairs), leave=False, disable=None if label else True, unit="image")
    for reference in bar:
        with torch.autocast(reference.lr.device.type, torch.bfloat16, enabled=precision == "bf16"):
            sr = upscale(reference.lr).float()
        for name, value in reference.scores(finish(sr, p)).items():
            scores[name].append(value)
    return {name: torch.cat(values).tolist() if values else [] for name, values in scores.items()}


def finish(sr: Tensor, protocol: Protocol) -> Tensor:
    """Clamp sr to [-1,1], perhaps in place, and round it to 8 bits if the protocol does."""
    return quantize(sr) if protocol.eight_bit else sr.clamp_(-1, 1)


def mean_scores(scores: Mapping[str, list[float]]) -> dict[str, float]:
    """The mean over images of each metric; infinite PSNRs are left out unless all are infinite."""
    means = {}
    for name, values in scores.items():
        finite = [value for value in values if value != math.inf] if name.startswith("PSNR") else values
        means[name] = sum(finite) / len(finite) if finite else math.inf
    return means


def count_infinite(scores: Mapping[str, list[float]]) -> dict[str, int]:
    """The number of images with infinite PSNR, for each PSNR that has any."""
    counts = {name: values.count(math.inf) for name, values in scores.items() if name.startswith("PSNR")}
    return {name: count for name, count in counts.items() if count}
