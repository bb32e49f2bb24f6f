"""Distances between the features of a frozen ImageNet network, the parts of the Dual Perceptual loss.

Song et al., "Dual Perceptual Loss for Single Image Super-Resolution Using ESRGAN", 2022, arXiv 2201.06383: VGG19's
conv5_4 beside stages of ResNet-50. Both stay in eval mode, BatchNorm on ImageNet's statistics. Images: RGB in [-1,1].

Networks see images normalised by ImageNet's mean and deviation, and those whose name ends in "-unnormalised" see them
in [0,1], as the authors' ResNet-50 does: "resnet50-unnormalised:layer1+layer2+layer3" is the sum of their code. (In
that code it also normalises by the statistics of each batch. Here it never does: sr and hr would be measured apart.)
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
    """A VGG's layers by Simonyan and Zisserman's names: conv5_4 before its activation, relu5_4 after it."""
    layers, position = {}, 0
    for block, convs in enumerate(convs_per_block, start=1):
        for i in range(1, convs + 1):
            layers |= {f"conv{block}_{i}": str(position), f"relu{block}_{i}": str(position + 1)}
            position += 2
        position += 1  # the pooling
    return layers


class Network(NamedTuple):
    """A network: its name in backbones.py, its constructor, and torchvision's layers by our names."""

    backbone: str
    build: Callable[[], nn.Module]
    layers: dict[str, str]


# convN is before the activation, reluN, fireN and layerN (ResNet's stages) after it; shallow first.
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

    The layers are in the order of the network.

    The last says whether the network sees images normalised. Raises ValueError on unknown or repeated names.
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
    """The least height and width that the layers, on the meta device, take: pooling leaves something."""
    for size in range(1, 512):
        try:
            layers(torch.empty(1, 3, size, size, device="meta"))
        except RuntimeError:
            continue
        return size
    raise AssertionError("no image is large enough")


class FeatureDistance(PerceptualMetric):
    """Mean absolute difference of features, summed over layers; a, b (B,3,H,W) in [-1,1] -> (B,).

    name: network and layers, as "vgg19:conv5_4" (see NETWORKS), the network with UNNORMALISED behind it or without. It
    ends at the deepest layer that is named, and its weights are left empty: build_extractor fills them. No gradient
    reaches b or the weights, and train() has no effect.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str) -> None:
        super().__init__(name)
        network, layers, normalised = parse_extractor(name)
        self.taken = [NETWORKS[network].layers[layer] for layer in layers]
        with torch.device("meta"):  # no time or random numbers for weights that a file replaces
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
        """Stay in eval mode, whatever a module around this one switches to."""
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
        """Return the distance to reference (B,3,H,W), whose features are computed here, without a gradient."""
        with torch.no_grad():
            return ReferenceDistance(self.compare, self.features(reference))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.with_reference(b)(a)


def build_extractor(name: str, weights: tuple = (), flag: str = "--extractor-weights") -> FeatureDistance:
    """Build the feature distance `name` with ImageNet weights.

    Args:
        name: network and layers, as "vgg19:conv5_4" or "resnet50:layer1+layer2+layer3".
        weights: local backbone files, see find_backbone.
        flag: the command's flag that names them.

    Raises ValueError for an unknown network or layer, and if the weights cannot be had.
    """
    extractor = FeatureDistance(name)
    backbone = NETWORKS[parse_extractor(name)[0]].backbone
    path, features = find_backbone(backbone, weights, needed_by=name, flag=flag)
    fill_backbone(extractor.net, features, path)
    return extractor
