"""Our networks with converted weights against outputs of the TLW authors' released networks.

tests/golden/models_golden.npz holds, for each network and scale, an input (BGR, [-1,1]), every third row and column of
the released network's output, and the names and shapes of its parameters, which are drawn by a fixed rule.
"""

import json
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from losses.weighting import WeightingNet, relaxed_bernoulli
from models import SR_MODELS
from models.released import (
    from_released_tlw,
    released_model_of,
    scale_from_shapes,
    weighting_from_released,
    without_uncertainty,
)

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "golden" / "models_golden.npz")
KEYS = json.loads(GOLDEN["keys"].tobytes())
OFFICIAL = ROOT.parent / "shared" / "reference" / "official"
needs_official = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the full outputs of the released code are not beside the repository"
)
NETWORKS = [f"{model}_x{scale}" for model in ("VDSR", "EDSR", "RCAN") for scale in (2, 3, 4)] + ["HAT_x4"]


def filled(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Parameters by the rule that the golden outputs were made with; integer entries are left out."""
    state_dict = {}
    for i, (name, shape) in enumerate(keys.items()):
        if "index" in name or "num_batches" in name:
            continue
        z = np.random.RandomState(1000 + i).standard_normal(prod(shape))
        if name.endswith("running_var"):
            z = 1 + 0.1 * z
        elif len(shape) == 1 and name.endswith("weight"):
            z = 1 + 0.1 * z.clip(-3, 3)
        elif len(shape) <= 1:
            z = 0.05 * z
        else:
            z = z * (0.5 / (z.size / shape[0])) ** 0.5
        state_dict[name] = torch.from_numpy(z.reshape(shape).astype(np.float32))
    return state_dict


@lru_cache
def our_output(network: str) -> np.ndarray:
    """The converted network's output for the golden input, in the golden file's BGR order."""
    state_dict = filled(KEYS[network])
    model_name = released_model_of(state_dict)
    net = SR_MODELS[model_name](scale=int(network[-1])).eval()
    missing, unexpected = net.load_state_dict(from_released_tlw(state_dict, model_name), strict=False)
    assert not unexpected and all("index" in name for name in missing)
    with torch.no_grad():
        return net(torch.from_numpy(GOLDEN[f"{network}_in"]).flip(1)).flip(1).numpy()


@pytest.mark.parametrize("network", NETWORKS)
def test_output_equals_released(network):
    ours = our_output(network)[:, :, ::3, ::3]
    np.testing.assert_allclose(ours, GOLDEN[f"{network}_out_every_third"], rtol=0, atol=1e-4)


@needs_official
@pytest.mark.parametrize("network", NETWORKS)
def test_output_equals_released_everywhere(network):
    with np.load(OFFICIAL / "models_golden.npz") as official:
        np.testing.assert_allclose(our_output(network), official[f"{network}_out"], rtol=0, atol=1e-4)


@needs_official
def test_uhat_without_its_head_is_hat():
    with np.load(OFFICIAL / "models_golden.npz") as official:
        lr, expected = official["UHAT_x4_in"], official["UHAT_x4_out"]
    body = without_uncertainty(filled(KEYS["UHAT_x4"]))
    net = SR_MODELS["HAT-TLW"](scale=4).eval()
    net.load_state_dict(from_released_tlw(body, "HAT-TLW"), strict=False)
    with torch.no_grad():
        ours = net(torch.from_numpy(lr).flip(1)).flip(1).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_model_and_scale_are_recognised(network):
    shapes = {name: torch.empty(shape, device="meta") for name, shape in KEYS[network].items()}
    model, scale = network.split("_x")
    assert released_model_of(shapes) == {"HAT": "HAT-TLW"}.get(model, model)
    assert scale_from_shapes(shapes) == (None if model == "VDSR" else int(scale))


@needs_official
def test_weighting_network_equals_released():
    keys = json.loads((OFFICIAL / "weighting_net_keys.json").read_text())
    with np.load(OFFICIAL / "tlw_golden.npz") as official:
        hr, sr, noise = (torch.from_numpy(official[name]).float().flip(1) for name in ("hr", "sr", "noise"))
        expected = official["w_k0.4"]
    net = WeightingNet().train()
    missing, unexpected = net.load_state_dict(weighting_from_released(filled(keys)), strict=False)
    assert not unexpected and all("num_batches" in name for name in missing)
    with torch.no_grad():
        ours = relaxed_bernoulli(net(hr, sr, 0.4), noise).flip(1).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
