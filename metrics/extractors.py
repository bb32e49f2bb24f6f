"""Distances between the features of a frozen ImageNet network, as in the Dual Perceptual loss.

Song et al., "Dual Perceptual Loss for Single Image Super-Resolution Using ESRGAN", 2022, arXiv 2201.06383: VGG19's
conv5_4 and stages of ResNet-50. Images are RGB in [-1,1]; BatchNorm uses ImageNet's statistics.

Networks get images normalised by ImageNet's mean and deviation; with "-unnormalised" behind their name they get them in
[0,1], like the authors' ResNet-50: "resnet50-unnormalised:layer1+layer2+layer3" is the sum in their code. (There, its
BatchNorm uses each batch's statistics, so that sr and hr are normalised differently. Here it never does.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from .backbones import fill_backbone, find_backbone
from .base import PerceptualMetric, ReferenceDistance
from .errors import choose

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0,1]
IMAGENET_STD = (0.229, 0.224, 0.225)
UNNORMALISED = "-unnormalised"


def vgg_layers(*convs_per_block: int) -> dict[str, str]:
    """Map Simonyan and Zisserman's names, such as conv5_4 and relu5_4, to torchvision's layers of a VGG."""
    layers, position = {}, 0
    for block, convs in enumerate(convs_per_block, start=1):
        for i in range(1, convs + 1):
            layers |= {f"conv{block}_{i}": str(position), f"relu{block}_{i}": str(position + 1)}
            position += 2
        position += 1  # the pooling
    return layers


class Network(NamedTuple):
    """A network: its name in backbones.py, its constructor, and our layer names -> torchvision's."""

    backbone: str
    build: Callable[[], nn.Module]
    layers: dict[str, str]


# Layers, shallow first: convN before the activation; reluN, fireN and layerN (ResNet's stages) after it.
NETWORKS = {
    "vgg19": Network("vgg19", lambda: zoo.vgg19().features, vgg_layers(2, 2, 4, 4, 4)),
    "vgg16": Network("vgg", lambda: zoo.vgg16().features, vgg_layers(2, 2, 3, 3, 3)),
    "resnet50": Network(
        "resnet50", lambda: zoo.resnet50(norm_layer=FrozenBatchNorm2d), {f"layer{i}": f"layer{i}" for i in range(1, 5)}
    ),
    "alexnet": Network(
        "alex",
        lambda: zoo.alexnet().features,
        {
            "conv1": "0",
            "relu1": "1",
            "conv2": "3",
            "relu2": "4",
            "conv3": "6",
            "relu3": "7",
            "conv4": "8",
            "relu4": "9",
            "conv5": "10",
            "relu5": "11",
        },
    ),
    "squeezenet": Network(
        "squeeze",
        lambda: zoo.squeezenet1_1().features,
        {
            "conv1": "0",
            "relu1": "1",
            "fire2": "3",
            "fire3": "4",
            "fire4": "6",
            "fire5": "7",
            "fire6": "9",
            "fire7": "10",
            "fire8": "11",
            "fire9": "12",
        },
    ),
}


def parse_extractor(name: str) -> tuple[str, list[str], bool]:
    """Parse "resnet50:layer1+layer2" into ("resnet50", ["layer1", "layer2"], True).

    The layers come in the network's order; the bool says whether it gets normalised images. Raises ValueError for
    unknown or repeated names.
    """
    network, colon, layers = str(name).partition(":")
    normalised = not network.endswith(UNNORMALISED)
    network = network.removesuffix(UNNORMALISED)
    choose(network, NETWORKS, "extractor network")
    if not colon:
        raise ValueError(f"extractor {name!r} names no layer; write it as in {name}:{[*NETWORKS[network].layers][-1]}")
    asked = [choose(layer, NETWORKS[network].layers, f"layer of {network}") for layer in layers.split("+")]
    if len(set(asked)) < len(asked):
        raise ValueError(f"extractor {name!r} names a layer twice; name each once")
    return network, [layer for layer in NETWORKS[network].layers if layer in asked], normalised


def smallest_size(layers: nn.Sequential) -> int:
    """The smallest height and width of an image for layers on the meta device, which compute no values."""
    for size in range(1, 512):
        try:
            layers(torch.empty(1, 3, size, size, device="meta"))
        except RuntimeError:
            continue
        return size
    raise AssertionError("no image is large enough")


class FeatureDistance(PerceptualMetric):
    """Mean absolute difference of features, summed over layers; a, b (B,3,H,W) in [-1,1] -> (B,).

    name: network and layers, such as "vgg19:conv5_4" (see NETWORKS); the network may end in UNNORMALISED. Layers behind
    the deepest one named are left out. The weights are uninitialised: build_extractor loads them. b and the weights get
    no gradient, and train() has no effect.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__(name)
        network, layers, normalised = parse_extractor(name)
        self.taken = [NETWORKS[network].layers[layer] for layer in layers]
        with torch.device("meta"):  # saves time, and random numbers, for weights that a file replaces
            children = dict(NETWORKS[network].build().named_children())
        names = list(children)
        self.net = nn.Sequential()
        for child in names[: names.index(self.taken[-1]) + 1]:
            self.net.add_module(child, children[child])
        self.min_size = smallest_size(self.net)
        self.net.to_empty(device="cpu")
        for layer, following in zip(names, names[1:]):
            activation = children[following]
            if layer in self.taken and isinstance(activation, nn.ReLU):
                activation.inplace = False  # it would overwrite the features before activation
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalised else ((0.0,) * 3, (1.0,) * 3)  # of images in [0,1]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        self.register_buffer("mean", 2 * mean - 1, persistent=False)
        self.register_buffer("std", 2 * std, persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FeatureDistance":
        """Stay in eval mode, also if a parent module calls train()."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """(N,3,H,W) -> float32 features (N,C,h,w) of the named layers, shallow first."""
        x, taken = (images - self.mean) / self.std, []
        for name, layer in self.net.named_children():
            x = layer(x)
            if name in self.taken:
                taken.append(x.float())
        return taken

    def compare(self, images: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Images (N,3,H,W) and the features of B references, N a multiple of B -> distances (N,)."""
        total = images.new_zeros(())
        for f, r in zip(self.features(images), reference):
            total = total + (f.unflatten(0, (-1, len(r))) - r).abs().mean(dim=(-3, -2, -1)).flatten()
        return total

    def with_reference(self, reference: Tensor) -> ReferenceDistance:
        """Return the distance to reference (B,3,H,W), whose features are computed here without a gradient."""
        with torch.no_grad():
            return ReferenceDistance(self.compare, self.features(reference))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.with_reference(b)(a)


def build_extractor(name: str, weights: tuple = ()) -> FeatureDistance:
    """Build the feature distance `name` with ImageNet weights.

    Args:
        name: network and layers, such as "vgg19:conv5_4" or "resnet50:layer1+layer2+layer3".
        weights: local weights files, see find_backbone.

    Raises ValueError for an unknown network or layer, and for weights that cannot be read or downloaded.
    """
    extractor = FeatureDistance(name)
    backbone = NETWORKS[parse_extractor(name)[0]].backbone
    path, features = find_backbone(backbone, weights, needed_by=name, flag="--extractor-weights")
    fill_backbone(extractor.net, features, path)
    return extractor
