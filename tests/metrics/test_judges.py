"""Every judge by its name: what they share, and that the weight criterion and the E-step stand on each of them."""

import copy
from functools import lru_cache

import pytest
import torch
from torch import nn
from torchvision.models import alexnet, squeezenet1_1
from torchvision.models.vgg import cfgs, make_layers

from losses import TLW, Target, weight_criterion
from metrics import perceptual
from metrics.judges import JUDGES, METRICS, metric_of
from training.device import place_frozen

SIZE = (36, 44)
FEATURES = {
    "vgg": lambda: make_layers(cfgs["D"]),
    "alex": lambda: alexnet(num_classes=1).features,
    "squeeze": lambda: squeezenet1_1(num_classes=1).features,
}
# (reference, output): identical, constant, at both ends of the range, random.
PAIRS = (
    "identical",
    "black",
    "white",
    "constants",
    "black and white",
    "constant and random",
    "random",
    "anti-correlated",
)


@lru_cache
def random_features(net, weights=()):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return None, FEATURES[net]().state_dict()


@lru_cache
def built(constructor, **options):
    """With random weights, as train.py builds it; its range check has seen a dark pixel."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(perceptual, "find_backbone", random_features)
        for place, name in ((nn.Linear, "reset_parameters"), (nn.init, "normal_")):
            patch.setattr(place, name, lambda *_, **__: None)  # classifiers are thrown away
        judge = constructor(weights=(), memory=1 << 30, **options)
    judge.with_reference(images()[:1])
    return judge


def build(table, name):
    return built(table[name], **({"path": None} if name == "tiny" else {}))


def images(count=2, seed=0, size=SIZE):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(name):
    """hr and sr, (1,3,H,W)."""
    x, one = images(1, seed=1), torch.ones(1, 3, *SIZE)
    return {
        "identical": (x, x),
        "black": (-one, -one),
        "white": (one, one),
        "constants": (0.3 * one, -0.6 * one),
        "black and white": (-one, one),
        "constant and random": (0.3 * one, x),
        "random": (x, images(1, seed=2)),
        "anti-correlated": (x, -x),
    }[name]


# Names


def test_judges_and_metrics():
    lpips = [f"lpips-{net}{heads}" for net in ("vgg", "alex", "squeeze") for heads in ("", "-unweighted")]
    assert set(JUDGES) == {*lpips, "tiny", "ms-ssim"} and len(JUDGES) == 8
    assert set(METRICS) == {"vgg", "alex", "squeeze", "tiny", "ms-ssim"} == {metric_of(name) for name in JUDGES}


def test_a_metric_on_the_network_of_an_extractor_is_known():
    names = ("squeezenet:fire9", "squeezenet-unnormalised:fire9", "resnet50-unnormalised:layer1+layer2")
    assert [*map(metric_of, names)] == ["squeeze", "squeeze", "resnet50"]


@pytest.mark.parametrize("name", JUDGES)
def test_metric_of_a_judge_is_named_as_it(name):
    judge = build(JUDGES, name)
    assert build(METRICS, metric_of(name)).name == judge.name.removesuffix("-unweighted")
    assert judge.name.endswith("-unweighted") == name.endswith("-unweighted")


@pytest.mark.parametrize("name", JUDGES)
def test_what_judges_share(name):
    judge = build(JUDGES, name)
    reference, mixtures = images(2, 1), images(6, 2).unflatten(0, (3, 2))
    together = judge.with_reference(reference)(mixtures)
    assert together.shape == (3, 2) and (together > 0).all()
    torch.testing.assert_close(together[1], judge(mixtures[1], reference), rtol=1e-4, atol=1e-6)
    assert (judge(reference, reference).abs() < 1e-6).all()


@pytest.mark.parametrize("name", JUDGES)
def test_least_size_is_enough(name):
    judge = build(JUDGES, name)
    a, b = (images(1, seed, (judge.min_size, judge.min_size)) for seed in (1, 2))
    assert judge(a, b).isfinite().all()


# The weight criterion and the E-step


@pytest.mark.parametrize(
    "kind, name",
    [
        (kind, name)
        for kind in PAIRS
        for name in JUDGES
        if "vgg" not in name or kind in ("identical", "constants", "random")  # VGG is slow
    ],
)
def test_weight_criterion_is_positive_and_the_e_step_has_a_gradient(kind, name):
    hr, sr = pair(kind)
    w = torch.rand(1, *hr.shape, generator=torch.Generator().manual_seed(4)).mul(6).sub(3).sigmoid()
    w = torch.cat([w, w.round()]).requires_grad_()  # soft weights, and those that are 0 or 1
    wc = weight_criterion(w, sr, Target.judged_by(build(JUDGES, name), hr))
    assert wc.shape == (2, 1) and wc.isfinite().all() and (wc > 0).all()
    wc.log().mean().neg().backward()
    assert w.grad.isfinite().all()
    if kind in ("constant and random", "random"):
        assert w.grad.any()
    if kind in ("identical", "black", "white"):
        torch.testing.assert_close(wc, torch.ones_like(wc), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["lpips-squeeze", "tiny", "ms-ssim"])
@pytest.mark.parametrize("kind", ["identical", "black", "random"])
def test_e_step_of_the_loss(kind, name):
    torch.manual_seed(0)
    hr, sr = pair(kind)
    tlw = TLW("L1")
    loss = tlw.helper_loss(sr, Target.judged_by(build(JUDGES, name), hr), epoch=0)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in tlw.helper.parameters())
    assert (kind != "random") or any(p.grad.any() for p in tlw.helper.parameters())


@pytest.mark.parametrize("name", ["lpips-alex", "lpips-squeeze", "tiny"])
def test_placed_for_bf16_a_judge_finds_the_same(name):
    """Its weights are those that autocast would have made of them; nothing but the convolutions is in bf16."""
    kept = build(JUDGES, name)
    placed = place_frozen(copy.deepcopy(kept), torch.device("cpu"), "bf16")
    kept = place_frozen(copy.deepcopy(kept), torch.device("cpu"), "fp32")
    found = []
    for judge in (placed, kept):
        x = images(2, seed=3).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            distance = judge(x, images(2, seed=4))
        distance.sum().backward()
        found.append((distance.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    dtypes = {key: tensor.dtype for key, tensor in placed.state_dict().items()}
    assert {key for key, dtype in dtypes.items() if dtype == torch.bfloat16} == {
        f"{key}.{part}"
        for key, layer in placed.named_modules()
        if isinstance(layer, nn.Conv2d)
        for part in ("weight", "bias")
    }
