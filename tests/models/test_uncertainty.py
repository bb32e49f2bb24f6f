"""The uncertainty head: the released UHAT's output, a direct transcription, its range, and every network's features."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses.uncertainty import HEADS, UncertaintyHead
from models import SR_MODELS
from models.released import from_released_tlw, uncertainty_from_released, without_uncertainty

OFFICIAL = Path(__file__).parents[3] / "shared" / "reference" / "official"
needs_official = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the outputs of the released code are not beside the repository"
)


def filled(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Parameters by the rule that the golden outputs were made with; integer entries are left out."""
    state_dict = {}
    for i, (name, shape) in enumerate(keys.items()):
        if "index" in name:
            continue
        z = np.random.RandomState(1000 + i).standard_normal(prod(shape))
        if len(shape) == 1:
            z = 1 + 0.1 * z.clip(-3, 3) if name.endswith("weight") else 0.05 * z
        else:
            z = z * (0.5 / (z.size / shape[0])) ** 0.5
        state_dict[name] = torch.from_numpy(z.reshape(shape).astype(np.float32))
    return state_dict


@needs_official
@torch.no_grad()
def test_equals_the_released_uhat():
    """HAT's features, nearest upsampling and the head in a row; the images are BGR there."""
    released = filled(json.loads((OFFICIAL / "models_keys.json").read_text())["UHAT_x4"])
    with np.load(OFFICIAL / "models_golden.npz") as golden:
        lr = torch.from_numpy(golden["UHAT_x4_in"]).flip(1)
        expected_sr, expected = golden["UHAT_x4_out"], golden["UHAT_x4_uncertainty"]
    net = SR_MODELS["HAT-TLW"](scale=4).eval()
    net.load_state_dict(from_released_tlw(without_uncertainty(released), "HAT-TLW"), strict=False)
    head = UncertaintyHead(net.feature_channels, net.scale // net.feature_scale, "tlw").eval()
    head.load_state_dict(uncertainty_from_released(released))
    sr, features = net.forward_with_features(lr)
    np.testing.assert_allclose(sr.flip(1).numpy(), expected_sr, rtol=0, atol=1e-4)
    np.testing.assert_allclose(head(features).numpy(), expected, rtol=0, atol=1e-4)


@needs_official
def test_uhat_has_the_published_parameter_count():
    keys = json.loads((OFFICIAL / "models_keys.json").read_text())["UHAT_x4"]
    theirs = {name.removeprefix("u_estimator."): tuple(shape) for name, shape in keys.items() if "u_estimator" in name}
    head = UncertaintyHead(64, 4, "tlw")
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == theirs
    assert sum(p.numel() for p in head.parameters()) == 5_351_508 - 5_277_075


def elu(x, alpha=1.0):
    return torch.where(x > 0, x, alpha * (x.exp() - 1))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_equals_its_transcription(head, scale):
    torch.manual_seed(0)
    net, features = UncertaintyHead(6, scale, head), torch.randn(2, 6, 5, 4)
    x = features.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    state = net.state_dict()
    for layer in (1, 3, 5):
        x = F.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"], padding=1)
        if layer < 5:
            x = elu(x)
    expected = elu(x) if head == "authors" else elu(x, 0.1) + 0.1
    got = net(features)
    assert got.shape == (2, 3 if head == "authors" else 1, 5 * scale, 4 * scale)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("head, low", [("authors", -1.0), ("tlw", 0.0)])
@torch.no_grad()
def test_range(head, low):
    """Extreme features reach both ends of what the last ELU lets through, and stay finite."""
    torch.manual_seed(0)
    s = UncertaintyHead(4, 1, head)(1000 * torch.randn(4, 4, 20, 20))
    assert s.isfinite().all() and s.min() >= low and s.min() < low + 0.01 and s.max() > 10


@pytest.mark.parametrize("head", HEADS)
def test_gradients_reach_the_body_and_every_layer(head):
    torch.manual_seed(0)
    net, features = UncertaintyHead(4, 2, head), torch.randn(1, 4, 3, 3, requires_grad=True)
    s = net(features)
    (torch.exp(-s) + 2 * s).mean().backward()
    assert features.grad.isfinite().all() and features.grad.any()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(
    "name, options",
    [
        ("EDSR", dict(channels=8, blocks=1)),
        ("VDSR", dict(channels=8, blocks=1)),
        ("SRResNet", dict(channels=8, blocks=1)),
        ("RRDBNet", dict(channels=8, blocks=1, growth=4)),
        ("RCAN", dict(channels=8, groups=1, blocks=1, reduction=2)),
        ("HAT", dict(embed=24, depths=(2,), heads=(2,), window=4, squeeze_factor=2, channels=8)),
    ],
)
@torch.no_grad()
def test_fits_every_network(name, options):
    net = SR_MODELS[name](scale=3, **options)
    sr, features = net.forward_with_features(torch.rand(1, 3, 6, 5))
    s = UncertaintyHead(net.feature_channels, net.scale // net.feature_scale)(features)
    assert s.shape == sr.shape


def test_other_heads_are_refused():
    with pytest.raises(ValueError, match="^head='udl' is not known; use authors or tlw$"):
        UncertaintyHead(4, 2, "udl")


def test_conversion_wants_uhat():
    with pytest.raises(ValueError, match="looks like RCAN; expected UHAT"):
        uncertainty_from_released({"sf.weight": torch.zeros(1)})
