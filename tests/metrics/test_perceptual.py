"""LPIPS against the authors' package and their published distances, and where its ImageNet weights come from."""

import os
import pickle
import socket
import urllib.error
import warnings
from functools import lru_cache
from pathlib import Path

import lpips
import pytest
import torch
from torchvision.models import alexnet, squeezenet1_1
from torchvision.models.vgg import cfgs, make_layers

from data import read_rgb
from metrics import backbones
from metrics.backbones import at_hand, fill_backbone, find_backbone, read_backbone_file
from metrics.judges import JUDGES
from metrics.ops.unit_features import unit_normalise
from metrics.perceptual import LPIPS, MIN_SIZES

SHARED = Path(__file__).parents[3] / "shared"
REAL = {
    net: SHARED / "weights" / f"{name}_features.pth"
    for net, name in (("alex", "alexnet"), ("squeeze", "squeezenet1_1"))
}
EXAMPLES = SHARED / "reference" / "lpips"
needs_alex = pytest.mark.skipif(not REAL["alex"].is_file(), reason="AlexNet's weights are not beside the repository")
needs_examples = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="the three example images are not beside the repository"
)


@pytest.fixture(autouse=True)
def no_network_and_an_empty_cache(tmp_path, monkeypatch):
    """torchvision's cache is an empty folder, and whoever asks the network fails."""

    def refuse(url, *args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


FEATURES = {
    "vgg": lambda: make_layers(cfgs["D"]),  # vgg16() would fill its large classifier first
    "alex": lambda: alexnet().features,
    "squeeze": lambda: squeezenet1_1().features,
}


@lru_cache
def random_features(net: str) -> dict[str, torch.Tensor]:
    """Features of a randomly filled backbone, by torchvision's names: "0.weight"."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FEATURES[net]().state_dict()


@pytest.fixture(scope="module")
def random_file(tmp_path_factory):
    """random_file(net): a file of random features, with torchvision's names."""

    @lru_cache
    def write(net: str) -> Path:
        path = tmp_path_factory.mktemp("weights") / f"{net}.pth"
        torch.save({f"features.{key}": value for key, value in random_features(net).items()}, path)
        return path

    return write


@lru_cache
def ours_and_theirs(net: str, heads: bool, path: Path):
    """Our LPIPS and the package's with the weights in path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net=net, lpips=heads, pnet_rand=True, verbose=False)
    _, features = find_backbone(net, (path,))
    fill_backbone(theirs.net, features, path)
    return LPIPS(net, heads, (path,)), theirs


def images(count=2, seed=0, size=(67, 75)):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=generator) * 2 - 1


def check_equal(ours, theirs, size=(67, 75)):
    a, b = images(seed=1, size=size).requires_grad_(), images(seed=2, size=size)
    distance, expected = ours(a, b), theirs(a, b).flatten()
    assert distance.shape == (2,)
    torch.testing.assert_close(distance, expected, rtol=1e-5, atol=1e-7)
    gradient, expected = (torch.autograd.grad(d.sum(), a)[0] for d in (distance, expected))
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


# Values


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("net", MIN_SIZES)
def test_equals_the_package(net, heads, random_file):
    check_equal(*ours_and_theirs(net, heads, random_file(net)), size=(33, 40) if net == "vgg" else (67, 75))


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("net", REAL)
def test_equals_the_package_with_imagenet_weights(net, heads):
    if not REAL[net].is_file():
        pytest.skip(f"the ImageNet weights of {net} are not beside the repository")
    check_equal(*ours_and_theirs(net, heads, REAL[net]))


@needs_alex
@needs_examples
def test_published_examples():
    reference, p0, p1 = (
        torch.from_numpy(read_rgb(EXAMPLES / f"ex_{name}.png")).permute(2, 0, 1)[None] / 127.5 - 1
        for name in ("ref", "p0", "p1")
    )
    judge = JUDGES["lpips-alex"](weights=(str(REAL["alex"]),))
    assert judge(p0, reference).item() == pytest.approx(0.722, abs=5e-4)
    assert judge(p1, reference).item() == pytest.approx(0.138, abs=5e-4)


def test_bgr_is_the_flipped_image(random_file):
    path = random_file("alex")
    a, b = images(seed=1), images(seed=2)
    flipped = LPIPS("alex", weights=(path,))(a.flip(1), b.flip(1))
    bgr = LPIPS("alex", weights=(path,), bgr=True)(a, b)
    torch.testing.assert_close(bgr, flipped)
    assert not torch.allclose(bgr, LPIPS("alex", weights=(path,))(a, b), rtol=1e-3)


@pytest.mark.parametrize("heads", [True, False])
def test_against_many_samples_equals_single_calls(heads, random_file):
    judge = LPIPS("squeeze", heads, (random_file("squeeze"),))
    reference, samples = images(2, seed=1), images(6, seed=2).unflatten(0, (3, 2))
    together = judge.with_reference(reference)(samples)
    assert together.shape == (3, 2)
    for t in range(3):
        for b in range(2):
            torch.testing.assert_close(together[t, b : b + 1], judge(samples[t, b : b + 1], reference[b : b + 1]))


def test_reference_features_are_computed_once(random_file):
    judge = LPIPS("alex", weights=(random_file("alex"),))
    seen = []
    judge.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    distance = judge.with_reference(images(2, seed=1))
    for _ in range(3):
        distance(images(2, seed=2))
    assert seen == [2, 2, 2, 2]


def test_no_gradient_to_reference_or_weights(random_file):
    judge = LPIPS("alex", weights=(random_file("alex"),)).train()
    a, b = images(seed=1).requires_grad_(), images(seed=2).requires_grad_()
    judge(a, b).sum().backward()
    assert a.grad.any() and b.grad is None
    assert not any(p.requires_grad for p in judge.parameters())


def test_zero_distance_and_finite_gradient_of_identical_images(random_file):
    for x in (images(1, seed=1), torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)):
        for net in MIN_SIZES:
            a = x.clone().requires_grad_()
            distance = ours_and_theirs(net, True, random_file(net))[0](a, x)
            distance.sum().backward()
            assert distance.abs().max() < 1e-6 and a.grad.isfinite().all()


def test_finite_gradient_of_constant_images(random_file):
    for net in MIN_SIZES:
        a = torch.full((1, 3, 64, 64), 0.2, requires_grad=True)
        ours_and_theirs(net, True, random_file(net))[0](a, torch.full_like(a, -0.7).detach()).sum().backward()
        assert a.grad.isfinite().all()


def test_pixels_without_features_have_a_gradient():
    """The package divides by the norm itself, whose gradient at 0 is not a number."""
    ours, theirs = (torch.zeros(1, 4, 2, 2, requires_grad=True) for _ in range(2))
    unit_normalise(ours).square().sum().backward()
    lpips.normalize_tensor(theirs).square().sum().backward()
    assert theirs.grad.isnan().all() and ours.grad.isfinite().all()


def test_unit_length_in_float32():
    features = (images(2, seed=3) * torch.tensor([1e-6, 1e4]).view(2, 1, 1, 1)).bfloat16()
    unit = unit_normalise(features)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.square().sum(dim=1), torch.ones(2, 67, 75))


def test_names(random_file):
    file = random_file("squeeze")
    names = {
        (heads, bgr): LPIPS("squeeze", heads, (file,), bgr).name for heads in (True, False) for bgr in (True, False)
    }
    assert names == {
        (True, False): "LPIPS-squeeze",
        (False, False): "LPIPS-squeeze-unweighted",
        (True, True): "LPIPS-squeeze-BGR",
        (False, True): "LPIPS-squeeze-unweighted-BGR",
    }


@pytest.mark.parametrize("name", [name for name in JUDGES if "alex" in name or "squeeze" in name])
def test_judge_is_the_one_called_so(name, random_file):
    judge = JUDGES[name](weights=(random_file("alex"), random_file("squeeze")))
    assert judge.name == name.replace("lpips", "LPIPS")
    ones = all((getattr(judge, f"weight{i}") == 1).all() for i in range(5))
    assert ones == name.endswith("unweighted")


# Files


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("prefix", ["features.", ""])
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_reads_features_with_and_without_prefix(net, prefix, tmp_path):
    features = random_features(net)
    torch.save({prefix + key: value for key, value in features.items()}, tmp_path / "file")
    kind, found = read_backbone_file(tmp_path / "file")
    assert kind == net and equal(found, features)


def test_reads_a_whole_checkpoint(tmp_path):
    whole = {f"features.{key}": value for key, value in random_features("squeeze").items()}
    torch.save({**whole, "classifier.1.weight": torch.zeros(10, 512, 1, 1)}, tmp_path / "file")
    kind, found = read_backbone_file(tmp_path / "file")
    assert kind == "squeeze" and equal(found, random_features("squeeze"))


def test_tells_vgg16(random_file):
    assert read_backbone_file(random_file("vgg"))[0] == "vgg"


def truncated(path):
    torch.save(random_features("squeeze"), path)
    path.write_bytes(path.read_bytes()[:-5000])


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ["TLW_TEST_FOLDER"],)


BAD_FILES = {
    "truncated": truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
    "another network": lambda path: torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path),
    "a list": lambda path: torch.save([torch.zeros(3)], path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "numbers for names": lambda path: torch.save({0: torch.zeros(3)}, path),
    "no tensor": lambda path: torch.save({"features.0.weight": "64"}, path),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_file_is_named_in_one_line(bad, tmp_path):
    path = tmp_path / "weights.pth"
    BAD_FILES[bad](path)
    with pytest.raises(ValueError) as caught:
        LPIPS("squeeze", weights=(str(path),))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"features.0.weight": Code()}, path),
        lambda path: path.write_bytes(pickle.dumps({"features.0.weight": Code()}, protocol=2)),
    ],
    ids=["zip", "pickle"],
)
def test_code_in_a_file_is_refused_and_not_run(write, tmp_path, monkeypatch):
    monkeypatch.setenv("TLW_TEST_FOLDER", str(tmp_path / "ran"))
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_backbone_file(path)
    assert not (tmp_path / "ran").exists()


def test_incomplete_or_misshapen_weights_are_refused(tmp_path):
    features = dict(random_features("alex"))
    last = list(features)[-1]
    for wrong in ({**features, last: torch.zeros(7)}, {key: value for key, value in features.items() if key != last}):
        torch.save(wrong, tmp_path / "file")
        with pytest.raises(ValueError, match="weights do not fit their network"):
            LPIPS("alex", weights=(tmp_path / "file",))


def test_the_file_of_the_right_network_is_taken(random_file):
    files = (random_file("squeeze"), random_file("alex"))
    for net in ("alex", "squeeze"):
        state = LPIPS(net, weights=files).backbone.net.state_dict()
        assert equal({key.split(".", 1)[1]: value for key, value in state.items()}, random_features(net))


# The cache and the download


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("unreachable"),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        RuntimeError("invalid hash value"),
        urllib.error.HTTPError("address", 404, "Not Found", None, None),
    ],
)
def test_failed_download_names_address_folder_and_flag(error, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(ValueError) as caught:
        JUDGES["lpips-squeeze"]()
    message = str(caught.value)
    assert backbones.URLS["squeeze"] in message and "--judge-weights" in message
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in message


@pytest.mark.parametrize("net", MIN_SIZES)
def test_without_network_no_weights_but_an_error(net, random_file):
    """Files of other networks are no replacement either."""
    others = tuple(random_file(other) for other in ("alex", "squeeze") if other != net)
    for weights in ((), others):
        with pytest.raises(ValueError, match="no network in tests"):
            find_backbone(net, weights)


def test_download_waits_no_longer_than_its_timeout(monkeypatch):
    patience = []

    def fail(*args, **kwargs):
        patience.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("unreachable")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(77)
    try:
        with pytest.raises(ValueError):
            JUDGES["lpips-squeeze"]()
        assert patience == [backbones.TIMEOUT] and socket.getdefaulttimeout() == 77
    finally:
        socket.setdefaulttimeout(before)


def cache_file(net: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / backbones.URLS[net].rsplit("/", 1)[1]


def test_cached_file_is_used_without_network(tmp_path):
    assert not at_hand("alex")
    path = cache_file("alex")
    path.parent.mkdir(parents=True)
    torch.save({f"features.{key}": value for key, value in random_features("alex").items()}, path)
    assert str(path).startswith(str(tmp_path)) and at_hand("alex") and not at_hand("squeeze")
    state = LPIPS("alex").backbone.net.state_dict()
    assert equal({key.split(".", 1)[1]: value for key, value in state.items()}, random_features("alex"))


def test_named_file_wins_over_the_cache(random_file):
    path = cache_file("alex")
    path.parent.mkdir(parents=True)
    torch.save({f"features.{key}": torch.zeros_like(value) for key, value in random_features("alex").items()}, path)
    assert all(p.any() for p in LPIPS("alex", weights=(random_file("alex"),)).backbone.parameters())
    assert not any(p.any() for p in LPIPS("alex").backbone.parameters())


def test_downloaded_file_is_checked_and_used(monkeypatch):
    asked = {}

    def download(url, **options):
        asked.update(options, url=url)
        path = cache_file("squeeze")
        path.parent.mkdir(parents=True)
        torch.save({f"features.{key}": value for key, value in random_features("squeeze").items()}, path)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    state = LPIPS("squeeze").backbone.net.state_dict()
    assert equal({key.split(".", 1)[1]: value for key, value in state.items()}, random_features("squeeze"))
    assert asked["url"] == backbones.URLS["squeeze"] and asked["check_hash"] and asked["weights_only"]


def test_files_at_hand(random_file):
    assert at_hand("alex", (random_file("squeeze"), random_file("alex"))) and not at_hand("vgg", (random_file("alex"),))


def test_vgg19_is_not_taken_for_vgg16(tmp_path):
    with torch.device("meta"):
        shapes = {f"features.{name}": value.shape for name, value in make_layers(cfgs["E"]).state_dict().items()}
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, tmp_path / "19.pth")
    with pytest.raises(ValueError, match="LPIPS-vgg needs ImageNet weights"):
        find_backbone("vgg", (tmp_path / "19.pth",))
