"""The judge `tiny`: its size, its grids, its file, and, where that exists, whether it judges as LPIPS-alex does."""

import warnings
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from lpips.pretrained_networks import alexnet
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch.nn.functional import interpolate
from torchvision.transforms.functional import gaussian_blur

from data import read_rgb
from data.photographs import photographs
from metrics.perceptual import LPIPS
from metrics.tiny import TINY_FILE, WIDTHS, Tiny

ALEX = Path(__file__).parents[3] / "shared" / "weights" / "alexnet_features.pth"
shipped = pytest.mark.skipif(not TINY_FILE.is_file(), reason=f"the judge tiny is not trained yet: no {TINY_FILE}")
needs_alex = pytest.mark.skipif(not ALEX.is_file(), reason="AlexNet's weights are not beside the repository")


def fresh(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny(path=None)


def images(count=2, seed=0, size=(64, 75)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def halves(judge):
    return {name: value.half().contiguous() for name, value in judge.state_dict().items()}


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_file(halves(fresh()), path, {"seed": "0"})
    return path


@lru_cache
def alexnet_slices():
    with warnings.catch_warnings():  # the package calls torchvision by its older keyword
        warnings.simplefilter("ignore", UserWarning)
        return alexnet(pretrained=False).eval()


# The network


def test_file_takes_a_megabyte_at_most(good_file):
    assert good_file.stat().st_size <= 1e6


@pytest.mark.parametrize("size", [(31, 31), (48, 48), (64, 75), (97, 110), (128, 127)])
def test_features_lie_on_the_grids_of_alexnet(size):
    ours, theirs = list(fresh().backbone(images(1, size=size))), alexnet_slices()(images(1, size=size))
    assert [f.shape[-2:] for f in ours] == [f.shape[-2:] for f in theirs] and len(ours) == 5


def test_least_size():
    judge = fresh()
    assert judge(images(1, 1, (31, 31)), images(1, 2, (31, 31))).isfinite().all() and judge.min_size == 31
    with pytest.raises(RuntimeError, match="too small"):
        judge(images(1, 1, (30, 30)), images(1, 2, (30, 30)))


def test_fresh_weights_give_a_distance_with_a_gradient():
    a, b = images(seed=1).requires_grad_(), images(seed=2)
    distance = fresh()(a, b)
    distance.sum().backward()
    assert distance.shape == (2,) and (distance > 0).all() and a.grad.isfinite().all() and a.grad.any()
    assert torch.equal(fresh()(b, b), torch.zeros(2)) and fresh().name == "tiny"


# The file


def test_weights_survive_the_file_in_half_precision(good_file):
    loaded, expected = Tiny(good_file), halves(fresh())
    state = loaded.state_dict()
    assert state.keys() == expected.keys() and len(state) == 15
    assert all(value.dtype == torch.float32 for value in state.values())
    assert all(torch.equal(value, expected[name].float()) for name, value in state.items())
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    a, b = images(seed=1), images(seed=2)
    torch.testing.assert_close(loaded(a, b), fresh()(a, b), rtol=1e-2, atol=0)
    assert not torch.allclose(fresh(1)(a, b), fresh()(a, b), rtol=2e-2)  # it is this file that is compared


def test_channel_weights_come_from_the_file(tmp_path):
    state = halves(fresh())
    halved = {name: value * (0.5 if name.startswith("weight") else 1) for name, value in state.items()}
    save_file(halved, tmp_path / "t")
    save_file(state, tmp_path / "u")
    a, b = images(seed=1), images(seed=2)
    torch.testing.assert_close(Tiny(tmp_path / "t")(a, b) * 2, Tiny(tmp_path / "u")(a, b))


def saved(change):
    return lambda path: save_file(change(halves(fresh())), path)


def cut(count):
    """The first count bytes of a good file, the last ones left out where count < 0."""

    def write(path):
        saved(dict)(path)
        path.write_bytes(path.read_bytes()[:count])

    return write


BAD_FILES = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello, this is not what you are looking for"),
    "pickle": lambda path: torch.save(halves(fresh()), path),
    "header cut": cut(100),
    "data cut": cut(-5000),
    "last byte cut": cut(-1),
    "no tensors": lambda path: save_file({}, path),
    "foreign": lambda path: save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path),
    "one missing": saved(lambda state: {name: value for name, value in state.items() if name != "weight3"}),
    "one more": saved(lambda state: {**state, "weight5": torch.ones(3)}),
    "other widths": saved(lambda state: {**state, "backbone.conv1.weight": torch.zeros(7, 3, 11, 11)}),
    "other heads": saved(lambda state: {**state, "weight0": torch.ones(1, 7, 1, 1)}),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_file_is_one_line_with_a_remedy(bad, tmp_path):
    path = tmp_path / "tiny.safetensors"
    BAD_FILES[bad](path)
    with pytest.raises(ValueError) as caught:
        Tiny(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: no weights of the judge tiny (") and "\n" not in message
    assert message.endswith("restore the file, or make it again with python -m reproduce.train_judge")


def test_values_that_are_no_numbers_are_refused(tmp_path):
    for value in (float("nan"), float("inf")):
        state = halves(fresh())
        state["backbone.conv3.weight"][1, 2, 0, 0] = value
        save_file(state, tmp_path / "tiny.safetensors")
        with pytest.raises(ValueError, match="restore the file"):
            Tiny(tmp_path / "tiny.safetensors")


# The shipped file: skipped until it is trained


def patches(size=96):
    """Parts of scikit-image's photographs, (4,3,96,96)."""
    cuts = {"astronaut": (60, 170), "chelsea": (80, 120), "coffee": (120, 200), "motorcycle": (200, 300)}
    parts = []
    for name, (top, left) in cuts.items():
        rgb = read_rgb(photographs(f"skimage:{name}")[0])[top : top + size, left : left + size]
        parts.append(torch.from_numpy(rgb.copy()).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(parts)


def noisy(x, level):
    return x + level * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))


def blurred(x, sigma):
    return gaussian_blur(x, 15, sigma)


def coarser(x, factor):
    small = interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return interpolate(small, x.shape[-2:], mode="bicubic")


LEVELS = {noisy: (0.02, 0.05, 0.1, 0.2, 0.4), blurred: (0.5, 0.8, 1.2, 2.0, 3.0), coarser: (1.5, 2, 3, 4, 6)}


@shipped
def test_shipped_weights():
    state = load_file(TINY_FILE)
    assert TINY_FILE.stat().st_size <= 1e6 and all(value.dtype == torch.float16 for value in state.values())
    weights = torch.cat([value.flatten() for name, value in state.items() if name.startswith("weight")])
    assert (weights >= 0).all() and weights.any() and len(weights) == sum(WIDTHS)
    assert all(value.isfinite().all() for value in state.values())


@shipped
@pytest.mark.parametrize("distortion", LEVELS, ids=lambda f: f.__name__)
def test_shipped_judge_grows_with_the_distortion(distortion):
    x, judge = patches(), Tiny(TINY_FILE)
    distance = judge.with_reference(x)
    steps = torch.stack([distance(distortion(x, level)) for level in (LEVELS[distortion])])
    assert (distance(x) < 1e-9).all() and (steps[0] > 1e-4).all() and (steps.diff(dim=0) > 0).all()


@shipped
@needs_alex
def test_shipped_judge_agrees_with_lpips():
    x, judges = patches(), (Tiny(TINY_FILE), LPIPS("alex", weights=(ALEX,)))
    distorted = torch.stack([distortion(x, level) for distortion, levels in LEVELS.items() for level in levels])
    ours, theirs = (judge.with_reference(x)(distorted) for judge in judges)  # (levels, patches)
    assert spearmanr(ours.flatten(), theirs.flatten()).statistic >= 0.9
    for patch in range(len(x)):
        assert spearmanr(ours[:, patch], theirs[:, patch]).statistic >= 0.9
    assert 0.5 < (ours / theirs).median() < 2  # about its values too
