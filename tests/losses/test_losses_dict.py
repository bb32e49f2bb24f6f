"""Every loss that a run can name: built from the settings, called alike, given what it asks for and no more."""

import inspect
from dataclasses import replace
from functools import partial

import pytest
import torch

import losses
from configs import Config
from losses import LOSSES, Loss, Target, WeightedSum, build_loss
from losses.discriminator import VGGDiscriminator
from models import SR_MODELS

SETTINGS = Config(scale=2, patch=32, batchsize=2, dp_extractors=("a:x", "b:y"))


@pytest.fixture(autouse=True)
def small_discriminator(monkeypatch):
    monkeypatch.setattr(losses, "VGGDiscriminator", partial(VGGDiscriminator, channels=4))


class CountingDistance:
    def __init__(self, hr, power=1):
        self.hr, self.power, self.calls = hr, power, 0

    def __call__(self, images):
        self.calls += 1
        return (images - self.hr).abs().pow(self.power).mean(dim=(-3, -2, -1))


def small_net():
    torch.manual_seed(0)
    return SR_MODELS["EDSR"](scale=2, channels=8, blocks=1)


def build(name, **changes) -> Loss:
    net = small_net()
    return build_loss(name, replace(SETTINGS, **changes), net)


def batch():
    """sr with its graph, its features and the target of everything."""
    lr, hr = (torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2 - 1 for size in (16, 32))
    sr, features = small_net().forward_with_features(lr)
    return (
        sr,
        features,
        Target(hr, CountingDistance(hr), lr, {"a:x": CountingDistance(hr), "b:y": CountingDistance(hr, 2)}),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_a_scalar_with_a_gradient(name):
    sr, features, target = batch()
    loss = build(name)(sr, target, 0.5, features)
    (gradient,) = torch.autograd.grad(loss, sr)
    assert loss.shape == () and loss > 0 and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_called_as_the_others(name):
    loss = build(name)
    assert isinstance(loss, Loss)
    for method in ("forward", "helper_loss", "begin_epoch", "begin_step", "log_scalars"):
        assert (
            inspect.signature(getattr(type(loss), method)).parameters.keys()
            == inspect.signature(getattr(Loss, method)).parameters.keys()
        )


@pytest.mark.parametrize("name", LOSSES)
def test_a_helper_learns_from_a_loss_of_its_own_and_nothing_else_does(name):
    sr, features, target = batch()
    loss = build(name)
    helper_loss = loss.helper_loss(sr, target, 0.5)
    assert (helper_loss is None) == (loss.helper is None) == (not ("TLW" in name or "GAN" in name))
    joint = {id(p) for p in loss.joint_parameters()}
    assert bool(joint) == (name == "L1+UDL")
    if loss.helper is not None:
        assert not joint & {id(p) for p in loss.helper.parameters()}
        helper_loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.helper.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_asked_of_the_target(name):
    """The judge and the extractors that the loss says it needs, which its name says too, and no others."""
    sr, features, target = batch()
    loss = build(name)
    loss(sr, target, 0.5, features)
    loss.helper_loss(sr, target, 0.5)
    assert (target.distance.calls > 0) == loss.needs_judge == ("TLW" in name)
    assert {key for key, distance in target.features.items() if distance.calls == 1} == set(loss.extractors)
    assert loss.extractors == (("a:x", "b:y") if "DP" in name else ())
    bare = Target(
        target.hr, target.distance if loss.needs_judge else None, None, target.features if loss.extractors else None
    )
    loss(sr, bare, 0.5, features)
    loss.helper_loss(sr, bare, 0.5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_weighting_network_is_found_inside_too(name):
    loss = build(name)
    found = [module for module in loss.modules() if type(module).__name__ == "WeightingNet"]
    assert (loss.weighting is None) == (not found) == ("TLW" not in name)
    assert loss.weighting is (found[0] if found else None)


@pytest.mark.parametrize("name", LOSSES)
def test_words(name):
    """What the log shows, before and while a helper learns; plain numbers."""
    shown = {"TLW": {"k", "WC"}, "GAN": {"D"}, "UDL": {"stage"}, "PSPL": {"sigma"}}
    expected = set().union(*(words for part, words in shown.items() if part in name))
    loss = build(name, pspl_epoch=2)
    loss.begin_step(5)
    words = loss.log_scalars(0.25, 2.5)
    if name == "L1+TLW+DP+GAN":  # one number of two helpers
        expected = {"k"}
    assert set(words) == expected and all(type(value) in (int, float) for value in words.values())
    assert set(build(name).log_scalars(None, 2.5)) == expected - {"WC", "D"}
    for word, value in (("WC", 0.7788008), ("D", 0.25), ("stage", 1), ("sigma", 2.5)):
        assert words.get(word, value) == pytest.approx(value)


def test_settings_reach_tlw():
    settings = dict(samples=5, eps=0.01, k_start=0.2, k_end=0.6, k_epochs=7, m_step="released")
    for name in ("L1+TLW", "MSE+TLW"):
        loss = build(name, **settings)
        assert (loss.samples, loss.eps, loss.k(0)) == (5, 0.01, 0.2)
        assert loss.k(7) == pytest.approx(0.2 + 0.4 * (1 - 0.36787944))
        assert loss.m_step is not build(name).m_step
        own = dict(weights="inverted", wc="one", e_every=4, reuse_mu=True, weighting_scale=2, weighting_channels=8)
        cheap = build(name, **own)
        assert (cheap.move, cheap.wc, cheap.e_every, cheap.reuse_mu) == (losses.tlw.inverted, "one", 4, True)
        assert (cheap.helper.scale, cheap.helper.conv[0].out_channels) == (2, 8)
        uniform = build(name, weights="uniform")
        assert uniform.helper is None and uniform.needs_judge  # for WC
        assert not build(name, weights="uniform", wc="one").needs_judge


def test_settings_reach_the_rivals():
    udl = build("L1+UDL", udl_epoch=7, udl_head="tlw", udl_plus_one=False, udl_minimum="batch", udl_restart=True)
    assert (udl.second, udl.plus_one, udl.head[5].out_channels) == (7, False, 1)
    assert udl.minimum is losses.udl.batch_minimum and udl.restart_epoch == 7
    assert build("L1+UDL").head[5].out_channels == 3 and build("L1+UDL").plus_one
    for name in ("L1+PSPL", "MSE+PSPL"):
        pspl = build(name, pspl_alpha=0.3, pspl_beta=0.7, pspl_max=5.0, pspl_epoch=10, pspl_ssim="authors")
        pspl.begin_step(100)
        assert (pspl.sigma(0), pspl.maximum, pspl.data_range) == (pytest.approx(3.7), 5.0, 1 / 255)
    loss = build("L1+DP+GAN", pixel_weight=0.3, gan_weight=0.7, dp_mu=3.0, gan="ragan", pretrain_epochs=1.5)
    pixel, dp, gan = loss.terms
    assert (pixel.weight, pixel.start_epoch, dp.weight, dp.start_epoch, gan.weight, gan.start_epoch) == (
        0.3,
        0,
        1,
        1.5,
        0.7,
        1.5,
    )
    assert (dp.loss.mu, dp.loss.extractors, gan.loss.relativistic) == (3.0, ("a:x", "b:y"), True)
    assert dp.loss.dynamic and not build("L1+DP", dp_dynamic=False).terms[1].loss.dynamic
    assert not build("L1+DP+GAN").terms[2].loss.relativistic
    assert build("L1+TLW+DP", samples=5).terms[0].loss.samples == 5


def test_the_pixel_term_alone_before_the_others():
    sr, features, target = batch()
    loss = build("L1+TLW+DP+GAN", pretrain_epochs=2.0)
    assert isinstance(loss, WeightedSum)
    torch.manual_seed(0)
    alone = loss.terms[0].loss(sr, target, 1.9)
    torch.manual_seed(0)
    torch.testing.assert_close(loss(sr, target, 1.9, features), 0.005 * alone)
    loss.helper_loss(sr, target, 1.9).backward()
    weighting, discriminator = loss.helper
    assert all(p.grad is not None for p in weighting.parameters()) and all(
        p.grad is None for p in discriminator.parameters()
    )
    assert build("L1+DP+GAN", pretrain_epochs=2.0).helper_loss(sr, target, 1.9) is None
    assert build("L1+DP+GAN", pretrain_epochs=2.0).helper_loss(sr, target, 2.0) is not None


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    "model, options", [("EDSR", {"blocks": 1}), ("VDSR", {"blocks": 1}), ("SRResNet", {"blocks": 1})], ids=str
)
def test_the_uncertainty_head_fits_the_backbone(model, options, scale):
    net = SR_MODELS[model](scale=scale, channels=8, **options)
    loss = LOSSES["L1+UDL"](replace(SETTINGS, scale=scale, patch=None), net)
    sr, features = net.forward_with_features(torch.zeros(1, 3, 7, 9))
    assert loss.head(features).shape == sr.shape == (1, 3, 7 * scale, 9 * scale)


def test_l1_and_mse_are_not_mixed_up():
    sr, hr = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4)
    target = Target(hr, CountingDistance(hr))
    assert build("L1")(sr, target, 0) == 0.5 and build("MSE")(sr, target, 0) == 0.25
    weighted = {}
    for name in ("L1+TLW", "MSE+TLW"):
        torch.manual_seed(0)
        weighted[name] = LOSSES[name](SETTINGS, None)(sr, target, 0)
    # MSE's weights are divided by |sr - hr| + 0.1 = 0.6 and its error is 0.25.
    torch.testing.assert_close(weighted["MSE+TLW"] / weighted["L1+TLW"], torch.tensor(0.25 / 0.6 / 0.5))
    paced = {name: build(name, pspl_beta=1e6)(sr, target, 0) for name in ("L1+PSPL", "MSE+PSPL")}
    assert paced["L1+PSPL"] == 2 * 127.5 * 0.5 and paced["MSE+PSPL"] == 4 * 127.5**2 * 0.25


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("L1+UDL", {"udl_epoch": 0}, "--udl-epoch 0: UDL's second stage needs a first"),
        ("L1+UDL", {"udl_epoch": 10, "startepoch": 10}, "--udl-epoch 10: .* after startepoch=10"),
        ("L1+DP+GAN", {"patch": None}, "--patch: .*whole images; add --patch 128"),
        ("L1+DP+GAN", {"patch": 48}, "--patch 48: .*use (32|64)"),
        ("L1+TLW+DP+GAN", {"batchsize": 1}, "--batchsize 1: "),
    ],
)
def test_settings_that_do_not_fit(name, changes, words):
    with pytest.raises(ValueError, match=words):
        build(name, **changes)
