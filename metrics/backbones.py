"""ImageNet weights of the perceptual networks, from a local file or torchvision's download.

There is no other source: with other weights a metric would be another metric.
"""

import re
import socket
import urllib.error
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torchvision.models import AlexNet_Weights, ResNet50_Weights, SqueezeNet1_1_Weights, VGG16_Weights, VGG19_Weights

from .errors import one_line
from .tensor_file import load_tensor_file


class WeightsNotFoundError(ValueError):
    """Error for weights that are neither in a file nor in torchvision's cache and cannot be downloaded."""


URLS = {
    "vgg": VGG16_Weights.IMAGENET1K_V1.url,
    "vgg19": VGG19_Weights.IMAGENET1K_V1.url,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1.url,
    "alex": AlexNet_Weights.IMAGENET1K_V1.url,
    "squeeze": SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
}
# Parameters whose shapes identify a network; None: the network has no such parameter. (VGG19 has no layer 17, the other
# VGGs no such layer 16, deeper ResNets a longer layer3, wider ones other shapes.)
SIGNATURES = {
    "vgg": {"17.weight": (512, 256, 3, 3)},
    "vgg19": {"16.weight": (256, 256, 3, 3)},
    "resnet50": {"layer3.5.conv3.weight": (1024, 256, 1, 1), "layer3.6.conv3.weight": None},
    "alex": {"0.weight": (64, 3, 11, 11)},
    "squeeze": {"3.squeeze.weight": (16, 64, 1, 1)},
}
TIMEOUT = 5  # seconds without an answer


def read_backbone_file(path: str | Path) -> tuple[str, dict]:
    """Read a torchvision checkpoint of a network in URLS: (its name there, the features' weights).

    The file holds the whole network or its features only. Returned names are torchvision's without "features.". Raises
    ValueError for any other file.
    """
    state = load_tensor_file(path, "weights", "; fetch it again")
    named = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, dict) else {}
    prefix = "features." if any(key.startswith("features.") for key in named) else ""
    features = {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
    shapes = {key: tuple(value.shape) for key, value in features.items()}
    for net, signature in SIGNATURES.items():
        if all(shapes.get(key) == shape for key, shape in signature.items()):
            return net, features
    raise ValueError(
        f"{path}: expected torchvision's VGG16, VGG19, ResNet-50, AlexNet or SqueezeNet 1.1 weights (the whole "
        "checkpoint or its features), found another file"
    )


def unused_files(files: Iterable[str | Path], nets: Iterable[str]) -> list[tuple[str | Path, str]]:
    """List (file, network) for files that hold none of `nets`. Raises ValueError for other files."""
    nets = set(nets)
    return [(path, net) for path in files if (net := read_backbone_file(path)[0]) not in nets]


def cache_file(net: str) -> Path:
    """The path at which torchvision caches the downloaded weights of `net`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / URLS[net].rsplit("/", 1)[1]


def at_hand(net: str, files: tuple = ()) -> bool:
    """True if the weights of `net` are in one of files or in torchvision's cache; downloads nothing."""
    return cache_file(net).exists() or any(kind == net for kind, _ in map(read_backbone_file, files))


def download_backbone(net: str, needed_by: str, flag: str) -> Path:
    """Return the path of torchvision's ImageNet weights of `net`, downloaded if they are not cached.

    Raises WeightsNotFoundError, which says what needs them and which flag names a local file.
    """
    cached = cache_file(net)
    if cached.exists():
        return cached
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        torch.hub.load_state_dict_from_url(URLS[net], map_location="cpu", check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise WeightsNotFoundError(
            f"{needed_by} needs ImageNet weights, and {URLS[net]} could not be fetched ({error}); "
            f"fetch it elsewhere and put it into {cached.parent}, or name the file with {flag}"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)
    return cached


def find_backbone(net: str, files: tuple = (), needed_by: str = "", flag: str = "--judge-weights") -> tuple[Path, dict]:
    """Find the weights of `net` in local files, else in torchvision's cache or download: (file, weights).

    Args:
        net: a name in URLS.
        files: local weights files of any networks in URLS.
        needed_by: the metric that needs the weights, for the error; "": LPIPS.
        flag: the flag that names a local file, for the error.

    Raises ValueError for an invalid file, WeightsNotFoundError if the weights cannot be downloaded.
    """
    for path in map(Path, files):
        kind, features = read_backbone_file(path)
        if kind == net:
            return path, features
    path = download_backbone(net, needed_by or f"LPIPS-{net}", flag)
    return path, read_backbone_file(path)[1]


def fill_backbone(module: nn.Module, features: dict, path: Path) -> None:
    """Load weights into `module`, whose layers are named as torchvision's or the `lpips` package's.

    Weights without a layer in the module are left out. Raises ValueError if the others do not fit.
    """
    try:
        # slice2.3.weight in lpips is torchvision's features.3.weight.
        module.load_state_dict({key: features[re.sub(r"^slice\d+\.", "", key)] for key in module.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path}: the weights do not fit their network ({one_line(error)}); fetch them again"
        ) from None
