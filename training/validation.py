"""What a run is validated on, and val.py evaluates on: images under a protocol, and perceptual metrics."""

import torch

from data import ImageCache, PairedDataset
from metrics.base import PerceptualMetric
from metrics.evaluate import MEMORY, PROTOCOLS, build_metrics

from .device import place_frozen


def read_validation_set(
    folders,
    scale: int,
    protocol: str,
    lr_folders=(),
    lr_template: str | None = None,
    cache: ImageCache | None = None,
    progress: bool = True,
) -> PairedDataset:
    """The images of folders with the LR that the protocol asks for, or with that of lr_folders."""
    p = PROTOCOLS[protocol]
    return PairedDataset(
        folders,
        scale,
        p.multiple or scale,
        lr_folders=lr_folders or None,
        lr_template=lr_template,
        round_lr=p.eight_bit,
        cache=cache,
        progress=progress,
    )


def metrics_on(
    device, nets, weights: tuple = (), bgr: bool = False, memory: int = MEMORY
) -> dict[str, PerceptualMetric]:
    """Build the perceptual metrics `nets` on the device, as `metrics.evaluate.build_metrics` does."""
    metrics = build_metrics(nets, weights, bgr, memory)
    return {name: place_frozen(metric, torch.device(device), "fp32") for name, metric in metrics.items()}
