"""The perceptual metrics and the judges by name.

A new metric is one file with a subclass of `PerceptualMetric` (base.py), its import here, and its entry in
OTHER_METRICS, which METRICS and JUDGES include.
"""

from collections.abc import Callable, Iterable
from functools import partial

from .base import PerceptualMetric, check_metric
from .errors import choose
from .ms_ssim import MSSSIM
from .perceptual import LPIPS
from .tiny import Tiny

# Called as METRICS[name](weights=files, memory=bytes, check_range=False). For a metric that needs none of these write
# lambda **ignored: MyMetric().
LPIPS_METRICS: dict[str, Callable[..., PerceptualMetric]] = {
    "alex": partial(LPIPS, "alex"),
    "vgg": partial(LPIPS, "vgg"),
    "squeeze": partial(LPIPS, "squeeze"),
}
OTHER_METRICS: dict[str, Callable[..., PerceptualMetric]] = {  # a new metric goes here
    "tiny": lambda weights=(), **options: Tiny(**options),
    "ms-ssim": lambda weights=(), **options: MSSSIM(**options),
}
METRICS = {**LPIPS_METRICS, **OTHER_METRICS}
# Called likewise. `lpips-alex` has LPIPS's trained heads; `lpips-alex-unweighted`, which the released TLW code trains
# against, sums the squared differences of the unit-normalised features.
JUDGES = {
    "lpips-vgg": METRICS["vgg"],
    "lpips-alex": METRICS["alex"],
    "lpips-squeeze": METRICS["squeeze"],
    "lpips-vgg-unweighted": partial(LPIPS, "vgg", heads=False),
    "lpips-alex-unweighted": partial(LPIPS, "alex", heads=False),
    "lpips-squeeze-unweighted": partial(LPIPS, "squeeze", heads=False),
    **OTHER_METRICS,
}
# MiB for a judge's activations by default. On CPUs larger batches are no faster.
MEMORY = {"cpu": 128, "cuda": 4096}


def build_metric(name: str, weights: tuple = (), memory: int = 4 << 30, bgr: bool = False) -> PerceptualMetric:
    """Build the perceptual metric METRICS[name], without a check that images are in [-1,1].

    Args:
        weights: local weights files.
        memory: bytes for its activations; larger images are measured in tiles.
        bgr: give LPIPS the channels in OpenCV's order, BGR.

    Raises ValueError for an unknown name, weights that cannot be read or downloaded, and a metric that breaks the
    contract of PerceptualMetric.
    """
    choose(name, METRICS, "perceptual metric")
    options = {"bgr": True} if bgr and name in LPIPS_METRICS else {}
    metric = check_metric(METRICS[name](weights=weights, memory=memory, check_range=False, **options), name)
    if word_of(metric.name) != name:
        raise ValueError(f"metric {name} calls itself {metric.name}; expected {name} in any case, see metrics/base.py")
    return metric


def build_judge(name: str, weights: tuple = (), memory: int = 4 << 30) -> PerceptualMetric:
    """Build JUDGES[name]; arguments and errors are those of build_metric."""
    choose(name, JUDGES, "judge")
    return check_metric(JUDGES[name](weights=weights, memory=memory, check_range=False), name)


def metric_of(judge: str) -> str:
    """The metric that shares its network with a judge or extractor, and is biased towards what it trained.

    "lpips-alex-unweighted" -> "alex", "squeezenet:fire9" -> "squeeze"; "resnet50:layer3" -> "resnet50", no metric.
    """
    network = judge.split(":")[0].removeprefix("lpips-").removesuffix("-unweighted").removesuffix("-unnormalised")
    return {"alexnet": "alex", "squeezenet": "squeeze", "vgg16": "vgg"}.get(network, network)


def word_of(metric: str) -> str:
    """A metric's name in METRICS: "LPIPS-alex-BGR-shaved" -> "alex", "1-MS-SSIM" -> "ms-ssim"."""
    return metric.lower().removesuffix("-shaved").removesuffix("-bgr").removeprefix("lpips-").removeprefix("1-")


def mark_biased(metric: str, judges: Iterable[str]) -> str:
    """A metric's full name, with " (judge)" appended if it shares its network with one of judges."""
    return f"{metric} (judge)" if word_of(metric) in map(metric_of, judges) else metric
