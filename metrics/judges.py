"""The judges and the perceptual metrics by name.

A judge maps a, b (B,3,H,W), RGB in [-1,1], to distances (B,), with a gradient; `with_reference(b)` gives the distance to
b with b's part computed once; `min_size` is the least height and width it takes.
"""

from collections.abc import Iterable
from functools import partial

from .ms_ssim import MSSSIM
from .perceptual import LPIPS, NETS
from .tiny import Tiny

# Called as METRICS[name](weights=files, **options).
METRICS = {
    **{net: partial(LPIPS, net) for net in NETS},
    "tiny": lambda weights=(), **options: Tiny(**options),
    "ms-ssim": lambda weights=(), **options: MSSSIM(**options),
}
# Called likewise. `lpips-alex` judges with LPIPS's trained heads, `lpips-alex-unweighted` (the form that the released
# TLW code trains against) sums the squared differences of the unit-normalised features.
JUDGES = {
    **{f"lpips-{net}": METRICS[net] for net in NETS},
    **{f"lpips-{net}-unweighted": partial(LPIPS, net, heads=False) for net in NETS},
    "tiny": METRICS["tiny"],
    "ms-ssim": METRICS["ms-ssim"],
}
# MiB that a judge's activations may take where nothing else is said. On CPUs several images at once are no faster.
MEMORY = {"cpu": 128, "cuda": 4096}


def metric_of(judge: str) -> str:
    """The metric that flatters whoever learned from a judge or a feature extractor: the one on the same network.

    "lpips-alex-unweighted" -> "alex", "squeezenet:fire9" -> "squeeze", "resnet50:layer3" -> "resnet50", which is none.
    """
    network = judge.removeprefix("lpips-").removesuffix("-unweighted").split(":")[0]
    return {"alexnet": "alex", "squeezenet": "squeeze", "vgg16": "vgg"}.get(network, network)


def word_of(metric: str) -> str:
    """A metric's name in METRICS, from its full name: "LPIPS-alex-BGR-shaved" -> "alex", "1-MS-SSIM" -> "ms-ssim"."""
    return metric.lower().removesuffix("-shaved").removesuffix("-bgr").removeprefix("lpips-").removeprefix("1-")


def mark_biased(metric: str, judges: Iterable[str]) -> str:
    """A metric's full name, with "(judge)" behind it where it flatters whoever learned from one of judges."""
    return f"{metric} (judge)" if word_of(metric) in map(metric_of, judges) else metric
