"""What every super-resolution network promises, and how conversion refuses what it cannot convert."""

import pytest
import torch
from torch import nn

from losses.weighting import WeightingNet
from models import SR_MODELS, build_network, init_paper, scales_of
from models.ops.tiled import TiledUpscaler
from models.released import (
    from_published_hat,
    from_released_tlw,
    released_model_of,
    scale_from_shapes,
    weighting_from_released,
)

PARAMETERS = {
    ("RCAN", 2): 15_444_643,
    ("RCAN", 3): 15_629_283,
    ("RCAN", 4): 15_887_779,
    ("EDSR", 2): 1_369_859,
    ("EDSR", 3): 1_554_499,
    ("EDSR", 4): 1_517_571,
    ("VDSR", 2): 372_096,
    ("VDSR", 3): 372_096,
    ("VDSR", 4): 372_096,
    ("SRResNet", 4): 1_517_571,
    ("RRDBNet", 4): 16_697_987,
    ("HAT-TLW", 4): 5_277_075,
    ("HAT", 4): 20_772_507,
}
SMALL = {
    "EDSR": dict(channels=8, blocks=2),
    "RCAN": dict(channels=16, groups=2, blocks=2, reduction=2),
    "VDSR": dict(channels=8, blocks=2),
    "SRResNet": dict(channels=8, blocks=2),
    "RRDBNet": dict(channels=8, blocks=2, growth=4),
    "HAT": dict(embed=24, depths=(2,), heads=(2,), window=4, squeeze_factor=2, channels=8),
    "HAT-TLW": dict(embed=24, depths=(2,), heads=(2,), squeeze_factor=2, channels=8),
}


def small(name: str, scale: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return SR_MODELS[name](scale=scale, **SMALL[name]).eval()


@pytest.mark.parametrize(("name", "scale"), PARAMETERS)
def test_parameter_count(name, scale):
    with torch.device("meta"):
        net = SR_MODELS[name](scale=scale)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name, scale]


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 8), (13, 7)])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SR_MODELS)
@torch.no_grad()
def test_shapes(name, scale, size):
    net, lr = small(name, scale), torch.rand(2, 3, *size) * 2 - 1
    before = lr.clone()
    sr, features = net.forward_with_features(lr)
    assert net.scale == scale
    assert sr.shape == (2, 3, scale * size[0], scale * size[1])
    assert features.shape == (2, net.feature_channels, net.feature_scale * size[0], net.feature_scale * size[1])
    assert torch.equal(net(lr), sr) and torch.equal(net.forward_features(lr), features)
    assert torch.equal(lr, before)


@pytest.mark.parametrize("name", SR_MODELS)
@torch.no_grad()
def test_images_of_a_batch_do_not_mix(name):
    net, lr = small(name), torch.rand(3, 3, 9, 10) * 2 - 1
    torch.testing.assert_close(net(lr)[1:2], net(lr[1:2]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SR_MODELS)
def test_every_parameter_learns(name):
    net = small(name)
    net(torch.rand(1, 3, 14, 8) * 2 - 1).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("name", SR_MODELS)
@torch.no_grad()
def test_state_dict_round_trip(name):
    net, other, lr = small(name), SR_MODELS[name](scale=2, **SMALL[name]).eval(), torch.rand(1, 3, 9, 10)
    init_paper(other)
    assert not torch.equal(net(lr), other(lr))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(lr), other(lr))


def test_edsr_residual_and_skips():
    net = small("EDSR")
    with torch.no_grad():
        for block in net.body:
            for parameter in block.parameters():
                parameter.zero_()
        lr = torch.rand(1, 3, 6, 5)
        assert torch.equal(net.forward_features(lr), net.head(lr))


def test_vdsr_starts_from_bicubic():
    net, lr = small("VDSR", 3), torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        net.tail.weight.zero_()
        expected = nn.functional.interpolate(lr, scale_factor=3, mode="bicubic", align_corners=False)
        assert torch.equal(net(lr), expected)


@pytest.mark.parametrize("scale", [2, 3])
@torch.no_grad()
def test_rcan_equals_spandrel(scale):
    """The RCAN authors' layout: the same names, 0-255 inside, which without mean shift cancels up to the biases."""
    architectures = pytest.importorskip("spandrel.architectures.RCAN")
    net = small("RCAN", scale)
    theirs = architectures.RCAN(scale=scale, n_resgroups=2, n_resblocks=2, n_feats=16, reduction=2, norm=False).eval()
    theirs.load_state_dict(net.state_dict())
    lr = torch.rand(2, 3, 9, 7) * 2 - 1
    torch.testing.assert_close(net(lr), theirs(lr.clone()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 5, 8])
@pytest.mark.parametrize("name", SR_MODELS)
def test_other_scales_are_refused(name, scale):
    if scale in scales_of(name):
        return
    numbers = "1, 2, 3, 4 or 8" if name in ("EDSR", "RCAN", "VDSR") else "2, 3 or 4"
    with pytest.raises(
        ValueError, match=rf"^scale={scale} is not supported by {name.removesuffix('-TLW')}; use {numbers}$"
    ):
        SR_MODELS[name](scale=scale)
    others = "" if scale == 5 else f"; networks for x{scale}: EDSR RCAN VDSR"
    with pytest.raises(ValueError, match=f"^--scale {scale}: {name} comes in {numbers.replace(' or', ',')}{others}$"):
        build_network(name, scale)


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("name", ["EDSR", "RCAN", "VDSR"])
@torch.no_grad()
def test_scales_1_and_8(name, scale):
    """Whole and in tiles; and the size of the upsampler."""
    net, lr = small(name, scale), torch.rand(1, 3, 40, 41) * 2 - 1
    sr, features = net.forward_with_features(lr)
    assert sr.shape == (1, 3, 40 * scale, 41 * scale) and features.shape[1] == net.feature_channels
    memory = 6_000_000 if net.receptive_radius is None else 400_000
    tiled = TiledUpscaler(net, memory * scale**2 // 8)(lr)
    torch.testing.assert_close(tiled, sr, rtol=0, atol=1e-5)
    upsamplers = [
        conv for key, conv in net.named_modules() if key.startswith("tail.0.") and isinstance(conv, nn.Conv2d)
    ]
    assert len(upsamplers) == {"EDSR": 3, "RCAN": 1, "VDSR": 0}[name] * (scale == 8)


@torch.no_grad()
def test_rcan_x8_equals_spandrel():
    """The RCAN authors' x8, in three steps of x2."""
    architectures = pytest.importorskip("spandrel.architectures.RCAN")
    torch.manual_seed(0)
    net = SR_MODELS["RCAN"](scale=8, upsample="two-step", **SMALL["RCAN"]).eval()
    theirs = architectures.RCAN(scale=8, n_resgroups=2, n_resblocks=2, n_feats=16, reduction=2, norm=False).eval()
    theirs.load_state_dict(net.state_dict())
    lr = torch.rand(2, 3, 9, 7) * 2 - 1
    torch.testing.assert_close(net(lr), theirs(lr.clone()), rtol=0, atol=1e-5)


@torch.no_grad()
def test_vdsr_x1_corrects_its_input():
    net, lr = small("VDSR", 1), torch.rand(1, 3, 6, 5)
    net.tail.weight.zero_()
    assert torch.equal(net(lr), lr)


def test_init_paper_distributions():
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Conv2d(64, 64, 3), nn.Linear(300, 300), nn.BatchNorm2d(5000), nn.LayerNorm(8)])
    conv_bias = net[0].bias.clone()
    init_paper(net)
    for layer in net[:3]:
        assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(net[0].bias, conv_bias)
    assert net[1].bias.std().item() == pytest.approx(1, rel=0.15)
    assert net[2].bias.mean().item() == pytest.approx(0.02, abs=0.05)
    assert net[2].bias.std().item() == pytest.approx(1, rel=0.05)
    assert net[3].weight.eq(1).all() and net[3].bias.eq(0).all()


def test_init_paper_follows_the_global_seed():
    nets = [small("RCAN") for _ in range(2)]
    for net in nets:
        torch.manual_seed(3)
        init_paper(net)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)


def test_weighting_conversion_flips_each_image_on_its_own():
    released = WeightingNet().state_dict()
    ours = weighting_from_released(released)
    assert list(ours) == list(released)
    assert torch.equal(ours["conv.0.weight"], released["conv.0.weight"][:, [2, 1, 0, 5, 4, 3]])
    assert torch.equal(ours["conv.9.weight"], released["conv.9.weight"][[2, 1, 0]])
    assert torch.equal(ours["conv.9.bias"], released["conv.9.bias"][[2, 1, 0]])


@torch.no_grad()
def test_published_hat_conversion_is_exact_and_leaves_its_input_alone():
    published = {name: value for name, value in small("HAT").state_dict().items() if name != "mean"}
    before = {name: value.clone() for name, value in published.items()}
    for wrapped in (published, {"params": published}, {"params_ema": published, "params": {}}):
        ours = from_published_hat(wrapped)
        assert torch.equal(ours["conv_first.weight"] * 2, published["conv_first.weight"])
        assert torch.equal(ours["conv_last.bias"] / 2, published["conv_last.bias"])
        small("HAT").load_state_dict(ours)
    assert all(torch.equal(published[name], before[name]) for name in before)


ENTRY = torch.zeros(1)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (
            lambda: from_released_tlw({"sf.weight": ENTRY}, "EDSR"),
            "looks like RCAN; expected EDSR; convert it with from_released_tlw(state_dict, 'RCAN')",
        ),
        (
            lambda: from_released_tlw({"u_estimator.1.weight": ENTRY}, "HAT-TLW"),
            "looks like UHAT; expected HAT-TLW; convert without_uncertainty(state_dict) as HAT-TLW",
        ),
        (
            lambda: from_released_tlw({"sf.weight": ENTRY}, "SwinIR"),
            "model_name='SwinIR' was not released; use one of EDSR, RCAN, VDSR, HAT-TLW",
        ),
        (lambda: from_published_hat({"net.conv_first.weight": ENTRY}), "looks like HAT-TLW; expected published HAT"),
        (
            lambda: from_published_hat(small("HAT").state_dict()),
            "looks like converted HAT; expected published HAT; load it into HAT as it is",
        ),
        (lambda: weighting_from_released({"conv1.0.weight": ENTRY}), "looks like VDSR; expected weighting network"),
        (
            lambda: released_model_of(WeightingNet().state_dict()),
            "looks like weighting network; expected EDSR or RCAN or VDSR or HAT-TLW; convert it with weighting",
        ),
        (lambda: released_model_of({"fc.weight": ENTRY}), "looks like something unknown (first entry 'fc.weight')"),
        (lambda: released_model_of({}), "looks like something unknown (first entry None)"),
    ],
)
def test_other_state_dicts_are_refused(convert, message):
    with pytest.raises(ValueError) as error:
        convert()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SR_MODELS)
def test_scale_from_our_own_shapes(name, scale):
    expected = None if name in ("VDSR", "RRDBNet") else scale
    assert scale_from_shapes(small(name, scale).state_dict()) == expected


def test_edsrs_residual_scaling_is_that_of_the_second_convolutions():
    """x + r (W y + b), as EDSR's paper has it, is the network without it whose W and b are r times as large."""
    torch.manual_seed(0)
    scaled = SR_MODELS["EDSR"](scale=2, channels=8, blocks=3, res_scale=0.1)
    plain = SR_MODELS["EDSR"](scale=2, channels=8, blocks=3)
    state = scaled.state_dict()
    plain.load_state_dict({name: (0.1 if ".body.2." in name else 1) * value for name, value in state.items()})
    lr = torch.rand(1, 3, 7, 6) * 2 - 1
    torch.testing.assert_close(scaled(lr), plain(lr))
    plain.load_state_dict(state)
    assert not torch.allclose(scaled(lr), plain(lr), atol=1e-3)
