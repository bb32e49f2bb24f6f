"""Feature distances against torchvision's networks under forward hooks, frozen for ever, and whose files are taken."""

import urllib.error
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as zoo
from torchvision.models.vgg import cfgs, make_layers
from torchvision.transforms.functional import normalize

from metrics import backbones
from metrics.backbones import find_backbone, read_backbone_file
from metrics.extractors import NETWORKS, FeatureDistance, build_extractor, parse_extractor

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"
REAL = {"alexnet": WEIGHTS / "alexnet_features.pth", "squeezenet": WEIGHTS / "squeezenet1_1_features.pth"}

# torchvision's own networks, the classifiers of the VGGs left out: filling them takes long.
ORACLES = {
    "vgg19": lambda: make_layers(cfgs["E"]),
    "vgg16": lambda: make_layers(cfgs["D"]),
    "resnet50": zoo.resnet50,
    "alexnet": lambda: zoo.alexnet().features,
    "squeezenet": lambda: zoo.squeezenet1_1().features,
}
# Where each layer is in torchvision's networks, written down from its printed architectures.
PLACES = {
    "vgg19:conv1_1": ["0"],
    "vgg19:conv3_4": ["16"],
    "vgg19:conv5_4": ["34"],
    "vgg19:conv2_2+relu2_2+relu5_1": ["7", "8", "29"],
    "vgg16:conv5_3": ["28"],
    "vgg16:relu4_3": ["22"],
    "resnet50:layer1+layer2+layer3": ["layer1", "layer2", "layer3"],
    "resnet50:layer4": ["layer4"],
    "resnet50-unnormalised:layer1+layer2+layer3": ["layer1", "layer2", "layer3"],
    "squeezenet-unnormalised:fire4": ["6"],
    "alexnet:conv2": ["3"],
    "alexnet:conv1+relu1+conv5": ["0", "1", "10"],
    "alexnet:relu5": ["11"],
    "squeezenet:conv1": ["0"],
    "squeezenet:fire2+fire4": ["3", "6"],
    "squeezenet:fire9": ["12"],
}


@lru_cache
def oracle(network: str) -> nn.Module:
    """torchvision's network in eval mode, with random weights and, in BatchNorm, statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ORACLES[network]()
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def random_file(tmp_path_factory):
    """random_file(network): a file of the oracle's weights, as torchvision names them."""

    @lru_cache
    def write(network: str) -> Path:
        path = tmp_path_factory.mktemp("weights") / f"{network}.pth"
        prefix = "" if network == "resnet50" else "features."
        torch.save({prefix + name: value for name, value in oracle(network).state_dict().items()}, path)
        return path

    return write


def images(*shape, seed=0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def expected_distance(net: nn.Module, places: list[str], a: Tensor, b: Tensor, normalised: bool = True) -> Tensor:
    """By hooks on the whole network. Copies, as torchvision's in-place ReLUs change what a hook is shown."""
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if normalised else ([0.0] * 3, [1.0] * 3)
    total = 0
    for place in places:
        seen = []
        hook = net.get_submodule(place).register_forward_hook(
            lambda module, inputs, output: seen.append(output.clone())
        )
        for x in (a, b):
            net(normalize((x + 1) / 2, mean=mean, std=std))
        hook.remove()
        total = total + (seen[0] - seen[1]).abs().flatten(1).mean(dim=1)
    return total


# Values


@pytest.mark.parametrize("name", PLACES)
def test_equals_torchvision(name, random_file):
    """Value and gradient, on images at least as large as the whole network takes."""
    network, suffix, _ = name.split(":")[0].partition("-unnormalised")
    size = {"alexnet": (67, 70), "vgg16": (32, 32), "vgg19": (32, 32)}.get(network, (40, 37))
    ours, a, b = (
        build_extractor(name, (random_file(network),)),
        images(2, 3, *size, seed=1),
        images(2, 3, *size, seed=2),
    )
    a.requires_grad_()
    distance, expected = ours(a, b), expected_distance(oracle(network), PLACES[name], a, b, normalised=not suffix)
    assert distance.shape == (2,) and ours.name == name
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-6)
    gradient, expected = (torch.autograd.grad(d.sum(), a)[0] for d in (distance, expected))
    # A feature difference close to 0 may change its sign with the rounding, and its gradient with it.
    assert (gradient - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("network", REAL)
def test_equals_torchvision_with_imagenet_weights(network):
    if not REAL[network].is_file():
        pytest.skip(f"the ImageNet weights of {network} are not beside the repository")
    net = ORACLES[network]().eval()
    state = torch.load(REAL[network], weights_only=True)
    net.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    layers, places = ("conv1+conv5", ["0", "10"]) if network == "alexnet" else ("fire3+fire9", ["4", "12"])
    a, b = images(2, 3, 67, 70, seed=1), images(2, 3, 67, 70, seed=2)
    distance = build_extractor(f"{network}:{layers}", tuple(REAL.values()))(a, b)
    torch.testing.assert_close(distance, expected_distance(net, places, a, b).detach(), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def squeeze(random_file):
    return build_extractor("squeezenet:conv1+fire4", (random_file("squeezenet"),))


def test_sums_are_sums(squeeze, random_file):
    a, b = images(2, 3, 24, 20, seed=1), images(2, 3, 24, 20, seed=2)
    single = [
        build_extractor(f"squeezenet:{layer}", (random_file("squeezenet"),))(a, b) for layer in ("conv1", "fire4")
    ]
    torch.testing.assert_close(squeeze(a, b), sum(single))
    swapped = build_extractor("squeezenet:fire4+conv1", (random_file("squeezenet"),))
    assert torch.equal(swapped(a, b), squeeze(a, b))


def test_against_many_samples_equals_single_calls(squeeze):
    reference, samples = images(2, 3, 20, 24, seed=1), images(3, 2, 3, 20, 24, seed=2)
    together = squeeze.with_reference(reference)(samples)
    assert together.shape == (3, 2)
    for t in range(3):
        for b in range(2):
            torch.testing.assert_close(together[t, b : b + 1], squeeze(samples[t, b : b + 1], reference[b : b + 1]))


def test_reference_features_are_computed_once(squeeze, monkeypatch):
    seen, features = [], squeeze.features
    monkeypatch.setattr(squeeze, "features", lambda x: seen.append(len(x)) or features(x))
    distance = squeeze.with_reference(images(2, 3, 20, 20))
    for _ in range(2):
        distance(images(2, 3, 20, 20))
    assert seen == [2, 2, 2]


def test_features_are_float32_under_autocast(squeeze):
    a, b = images(1, 3, 20, 20, seed=1), images(1, 3, 20, 20, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        distance = squeeze(a, b)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, squeeze(a, b), rtol=0.02, atol=0)


# Frozen


def test_no_gradient_to_reference_or_weights(squeeze):
    a, b = images(1, 3, 20, 20, seed=1).requires_grad_(), images(1, 3, 20, 20, seed=2).requires_grad_()
    squeeze(a, b).sum().backward()
    assert a.grad.any() and b.grad is None
    assert not any(p.requires_grad for p in squeeze.parameters())


@pytest.mark.parametrize(
    "x", [images(1, 3, 20, 20), torch.zeros(1, 3, 20, 20), torch.ones(1, 3, 20, 20)], ids=["noise", "0", "1"]
)
def test_identical_images_have_distance_zero_and_a_finite_gradient(squeeze, x):
    a = x.clone().requires_grad_()
    distance = squeeze(a, x)
    distance.sum().backward()
    assert distance.item() == 0 and a.grad.isfinite().all()


def test_train_has_no_effect(random_file):
    """BatchNorm stays on ImageNet's statistics, also where a module around switches to train mode."""
    extractor = build_extractor("resnet50:layer2", (random_file("resnet50"),))
    state = {name: value.clone() for name, value in extractor.state_dict().items()}
    a, b = images(2, 3, 32, 32, seed=1), images(2, 3, 32, 32, seed=2)
    before = extractor(a, b)
    nn.ModuleList([extractor]).train()
    assert not any(module.training for module in extractor.modules())
    assert torch.equal(extractor(a, b), before) and torch.equal(
        extractor.train()(a[:1], b[:1]), extractor.eval()(a[:1], b[:1])
    )
    assert all(torch.equal(value, state[name]) for name, value in extractor.state_dict().items())


def test_images_stay_as_they_are(squeeze):
    a = images(1, 3, 20, 20)
    squeeze(a, a.flip(-1))
    assert torch.equal(a, images(1, 3, 20, 20))


def test_random_numbers_are_not_touched(random_file):
    random_file("squeezenet")
    before = torch.random.get_rng_state()
    build_extractor("squeezenet:fire5", (random_file("squeezenet"),))
    assert torch.equal(torch.random.get_rng_state(), before)


# Names and sizes


@pytest.mark.parametrize(
    "name, last",
    [
        ("vgg19:conv5_4", "34"),
        ("vgg19:relu1_1", "1"),
        ("resnet50:layer3", "layer3"),
        ("alexnet:conv1+conv3", "6"),
        ("squeezenet:fire3+conv1", "4"),
    ],
)
def test_the_network_ends_at_the_deepest_layer(name, last):
    extractor = FeatureDistance(name)
    assert [child for child, _ in extractor.net.named_children()][-1] == last


@pytest.mark.parametrize(
    "name, size",
    [
        ("alexnet:conv1", 7),
        ("alexnet:relu5", 31),
        ("vgg19:conv5_4", 16),
        ("vgg16:conv1_2", 1),
        ("squeezenet:fire9", 17),
        ("resnet50:layer4", 1),
    ],
)
def test_smallest_image(name, size, random_file):
    """31, 16 and 17 are LPIPS's for the same depths. Below, the network refuses."""
    extractor = build_extractor(name, (random_file(name.split(":")[0]),))
    assert extractor.min_size == size
    assert extractor(images(1, 3, size, size), images(1, 3, size, size, seed=1)).isfinite().all()
    if size > 1:
        with pytest.raises(RuntimeError):
            extractor(images(1, 3, size - 1, size), images(1, 3, size - 1, size))


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_are_where_their_names_say(network):
    """convN is a convolution, reluN an activation right behind it; order and number are the network's."""
    net, layers = oracle(network), NETWORKS[network].layers
    order = [name for name, _ in net.named_children()]
    assert sorted(layers.values(), key=order.index) == list(layers.values())
    kinds = {"conv": nn.Conv2d, "relu": nn.ReLU, "fire": zoo.squeezenet.Fire, "layer": nn.Sequential}
    for name, place in layers.items():
        assert isinstance(net.get_submodule(place), kinds[name.rstrip("0123456789_")])
    convs = [place for name, place in layers.items() if not name.startswith("relu")]
    assert len(convs) == {"vgg19": 16, "vgg16": 13, "resnet50": 4, "alexnet": 5, "squeezenet": 9}[network]


@pytest.mark.parametrize(
    "name, words",
    [
        ("vgg9:conv5_4", ["network 'vgg9'", "did you mean vgg19?", "vgg19, vgg16, resnet50, alexnet, squeezenet"]),
        ("ResNet50:layer3", ["did you mean resnet50?"]),
        ("", ["network ''", "one of: vgg19"]),
        ("vgg19", ["names no layer", "vgg19:relu5_4"]),
        ("vgg19:conv5_5", ["layer of vgg19 'conv5_5'", "did you mean conv5_4?", "conv1_1, relu1_1"]),
        ("vgg16:conv5_4", ["layer of vgg16 'conv5_4'"]),
        ("resnet50:layer5", ["layer of resnet50", "layer1, layer2, layer3, layer4"]),
        ("resnet50:layer1+", ["layer of resnet50 ''"]),
        ("resnet50:layer1:layer2", ["'layer1:layer2'"]),
        ("alexnet:conv1+conv1", ["twice"]),
    ],
)
def test_wrong_names_are_answered_in_one_line(name, words):
    with pytest.raises(ValueError) as caught:
        build_extractor(name)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_parsing_sorts_layers():
    assert parse_extractor("resnet50:layer3+layer1") == ("resnet50", ["layer1", "layer3"], True)
    assert parse_extractor("resnet50-unnormalised:layer2") == ("resnet50", ["layer2"], False)


# Files


@pytest.mark.parametrize("network, backbone", [("vgg19", "vgg19"), ("resnet50", "resnet50"), ("vgg16", "vgg")])
def test_files_are_recognised(network, backbone, random_file):
    kind, features = read_backbone_file(random_file(network))
    assert kind == backbone
    expected = oracle(network).state_dict()
    assert features.keys() == expected.keys() and all(torch.equal(features[name], expected[name]) for name in expected)


def shapes_file(net: nn.Module, path: Path) -> Path:
    """A file with the names and shapes of a network, all values one and the same number on the disk."""
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in net.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("build", [zoo.vgg19, zoo.resnet50, zoo.vgg16])
def test_whole_checkpoints_are_recognised(build, tmp_path):
    with torch.device("meta"):
        kind, _ = read_backbone_file(shapes_file(build(), tmp_path / "file"))
    assert kind == {"vgg16": "vgg"}.get(build.__name__, build.__name__)


@pytest.mark.parametrize(
    "build",
    [
        zoo.vgg11,
        zoo.vgg13,
        zoo.vgg11_bn,
        zoo.vgg16_bn,
        zoo.vgg19_bn,
        zoo.resnet18,
        zoo.resnet34,
        zoo.resnet101,
        zoo.resnet152,
        zoo.wide_resnet50_2,
        zoo.squeezenet1_0,
        zoo.densenet121,
    ],
)
def test_relatives_are_refused(build, tmp_path):
    with torch.device("meta"):
        file = shapes_file(build(), tmp_path / "file")
    with pytest.raises(ValueError, match="expected torchvision's VGG16, VGG19, ResNet-50"):
        read_backbone_file(file)


def test_the_file_of_the_right_network_is_taken(random_file):
    files = tuple(map(random_file, ("vgg16", "resnet50", "vgg19")))
    for network, backbone in (("vgg19", "vgg19"), ("vgg16", "vgg")):
        assert find_backbone(backbone, files)[0] == random_file(network)


def test_older_checkpoints_without_batch_counters(random_file, tmp_path):
    state = {name: value for name, value in oracle("resnet50").state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    a, b = images(1, 3, 32, 32, seed=1), images(1, 3, 32, 32, seed=2)
    old, new = (build_extractor("resnet50:layer1", (file,)) for file in (tmp_path / "old.pth", random_file("resnet50")))
    assert torch.equal(old(a, b), new(a, b))


@pytest.mark.parametrize("wrong", [lambda v: torch.zeros(7), lambda v: None], ids=["another shape", "missing"])
def test_weights_that_do_not_fit_are_refused(wrong, tmp_path):
    state = {name: value for name, value in oracle("squeezenet").state_dict().items()}
    state["4.expand1x1.weight"] = wrong(state["4.expand1x1.weight"])
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "file")
    with pytest.raises(ValueError, match="weights do not fit their network") as caught:
        build_extractor("squeezenet:fire5", (tmp_path / "file",))
    assert str(tmp_path / "file") in str(caught.value) and "\n" not in str(caught.value)
    build_extractor("squeezenet:fire2", (tmp_path / "file",))  # which ends before the damage


@pytest.mark.parametrize(
    "name, backbone", [("vgg19:conv5_4", "vgg19"), ("resnet50:layer3", "resnet50"), ("alexnet:conv1", "alex")]
)
def test_without_weights_the_error_names_address_folder_and_flag(name, backbone, squeeze_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError) as caught:
        build_extractor(name, (squeeze_file,))
    message = str(caught.value)
    assert message.startswith(f"{name} needs ImageNet weights") and message.endswith("--extractor-weights")
    assert (
        backbones.URLS[backbone] in message and str(tmp_path / "hub" / "checkpoints") in message and "\n" not in message
    )


def test_the_cache_is_used_and_a_named_file_wins(random_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = backbones.cache_file("squeeze")
    cached.parent.mkdir(parents=True)
    torch.save({name: torch.zeros_like(value) for name, value in oracle("squeezenet").state_dict().items()}, cached)
    assert not any(p.any() for p in build_extractor("squeezenet:fire2").parameters())
    assert build_extractor("squeezenet:fire2", (random_file("squeezenet"),)).net[0].weight.any()


def test_addresses_are_the_first_imagenet_weights(monkeypatch):
    """Of which the papers' pretrained networks are, not torchvision's later, better classifiers."""
    asked = []

    def refuse(url, **options):
        asked.append(url.rsplit("/", 1)[1])
        raise urllib.error.URLError("no network in the tests")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    for name in ("vgg19:conv5_4", "resnet50:layer3"):
        with pytest.raises(ValueError):
            build_extractor(name)
    assert asked == ["vgg19-dcbb9e9d.pth", "resnet50-0676ba61.pth"]
