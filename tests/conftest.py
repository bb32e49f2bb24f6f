"""What many tests share: small photographs, fake judges, the command line of a tiny run, and no network."""

import json
import os
import urllib.error
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # python -m pytest -n auto: a process for each core, so each has one
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._device import DeviceContext, _device_constructors
from torchvision.models import alexnet, squeezenet1_1

import train
from data import read_rgb
from data.photographs import photographs
from runs.checkpoint import load_checkpoint

# Name of a photograph of scikit-image, and which part of it: top, left, height, width.
CUTS = {
    "astronaut": (40, 180, 50, 61),
    "coffee": (120, 200, 48, 72),
    "motorcycle": (200, 300, 64, 48),
    "rocket": (80, 300, 60, 60),
}


LIBRARIES = ("losses", "metrics", "models")  # whose tests --device is for


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help=f"of the tests in {', '.join(LIBRARIES)}, such as cuda")


class OnDevice(DeviceContext):
    """New tensors are on a device unless another is named; numbers of a CPU's generator are moved there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.numpy:
            return func(args[0].cpu())
        if func in _device_constructors() and kwargs.get("generator") is not None:
            return func(*args, **kwargs).to(self.device)
        return super().__torch_function__(func, types, args, kwargs)


@pytest.fixture(autouse=True)
def on_device(request, monkeypatch):
    """Have the tests of the libraries compute on --device, in fp32 without TF32."""
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cpu" or request.path.parent.name not in LIBRARIES:
        yield
        return
    from_numpy, autocast = torch.from_numpy, torch.autocast
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch, "from_numpy", lambda array: from_numpy(array).to(device))
    monkeypatch.setattr(torch, "autocast", lambda _, *args, **options: autocast(device.type, *args, **options))
    with OnDevice(device):
        yield


@pytest.fixture(scope="session", autouse=True)
def no_network(tmp_path_factory):
    """Downloads fail at once, in this process and in those it starts, and torchvision's cache is empty."""

    def refuse(url, *args, **kwargs):
        raise urllib.error.URLError("no network in the tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "load_state_dict_from_url", refuse)
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, "http://127.0.0.1:9")
        yield


@pytest.fixture(scope="session", autouse=True)
def no_report():
    """A run ends without the page that it makes for its owner, which takes a second; tests/test_report.py makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "report_or_note", lambda *args: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def any_disk():
    """The cache takes what it needs for the tests, also of a disk that is nearly full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.cache._KEEP_FREE", 0)
        yield


def log_without_clocks(run: Path) -> list[dict]:
    """The lines of a run's log that are the same each time: without its starts and what was measured by the clock."""
    clocks = ("elapsed", "seconds_per_step")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in clocks} for line in lines if "started" not in line]


def same(a, b, where=""):
    """Assert that two states (dicts and lists of tensors and plain values) are the same, bit by bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{where}[{i}]")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


@pytest.fixture(scope="session")
def assert_same():
    """`same`, for the tests of all files."""
    return same


def save_image(path, rgb: np.ndarray):
    """Write uint8 RGB (H,W,3), making folders as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of four small photographs of different sizes; for reading only."""
    folder = tmp_path_factory.mktemp("photographs") / "cuts"
    for name, (top, left, height, width) in CUTS.items():
        rgb = read_rgb(photographs(f"skimage:{name}")[0])
        save_image(folder / f"{name}.png", rgb[top : top + height, left : left + width])
    return folder


def fake_features(network, path):
    """torchvision's `network` with random but fixed weights, its features alone, as a file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(network().features.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def alex_file(tmp_path_factory):
    """FAKE AlexNet features: right shapes, random weights. Judges build, but their distances mean nothing."""
    return fake_features(alexnet, tmp_path_factory.mktemp("fake") / "fake_alexnet_features.pth")


@pytest.fixture(scope="session")
def squeeze_file(tmp_path_factory):
    """FAKE SqueezeNet 1.1 features, like `alex_file`."""
    return fake_features(squeezenet1_1, tmp_path_factory.mktemp("fake") / "fake_squeezenet1_1_features.pth")


@pytest.fixture(scope="session")
def tiny_args(images, squeeze_file):
    """A command line for train.py: two losses, two steps, about a second. The judge is the one that builds fastest."""
    return [
        *("--model", "EDSR", "--model-options", "blocks=1", "channels=8", "--scale", "4", "--losses", "L1+TLW", "L1"),
        *("--judge", "lpips-squeeze", "--judge-weights", str(squeeze_file), "--device", "cpu"),
        *("--trainpath", str(images), "--valpath", str(images), "--patch", "32", "--batchsize", "2", "--repeat", "1"),
        *("--endepoch", "1", "--log-every", "1"),
    ]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working folder, where checkpoints/ would appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def args(tiny_args, workplace):
    """Two learners, two epochs of four steps."""
    at = tiny_args.index("--repeat")
    return [*tiny_args[:at], "--repeat", "2", *tiny_args[at + 2 :], "--endepoch", "2"]


@pytest.fixture
def same_files(assert_same):
    """same_files(one, other): two runs' folders hold the same states and log."""

    def check(one: Path, other: Path) -> None:
        names = sorted(path.name for path in one.glob("*.pt") if path.name != "previous.pt")
        for name in names:
            assert_same(load_checkpoint(one / name), load_checkpoint(other / name), name)
        assert log_without_clocks(one) == log_without_clocks(other)

    return check


@pytest.fixture
def at_step(monkeypatch):
    """at_step(n, what): what() is called within the n-th call of em_step from then on."""
    step = train.em_step

    def set_up(n, what):
        left = [n]

        def em_step(*arguments):
            left[0] -= 1
            if not left[0]:
                what()
            return step(*arguments)

        monkeypatch.setattr(train, "em_step", em_step)

    return set_up
