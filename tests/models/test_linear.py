"""`Linear` against torch's own."""

import pytest
import torch
from torch import nn

from models.ops import linear
from models.ops.linear import Linear


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 4, 6), (6,)])
@pytest.mark.parametrize("dense", [True, False])
def test_is_a_linear_layer(shape, dense):
    torch.manual_seed(0)
    ours, theirs = Linear(6, 5).double(), nn.Linear(6, 5).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*shape, 2, dtype=torch.float64)[..., 0] if not dense else torch.randn(*shape, dtype=torch.float64)
    x.requires_grad_()
    found, expected = ours(x), theirs(x)
    assert found.shape == (*shape[:-1], 5)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(expected)
    found_slopes = torch.autograd.grad(found, (x, ours.weight, ours.bias), slope)
    for a, b in zip(found_slopes, torch.autograd.grad(expected, (x, theirs.weight, theirs.bias), slope)):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not linear.BY_CONVOLUTION, reason="this CPU is as fast without it")
@pytest.mark.parametrize("threads", [1, 2])
def test_onednn_computes_it(capfd, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        Linear(180, 360)(torch.rand(4096, 180)).sum().backward()
    torch.set_num_threads(before)
    said = [line for line in capfd.readouterr().out.splitlines() if "exec" in line and "convolution" in line]
    assert len(said) == 2, "forward, and the weights' gradient"


def test_without_its_kernels_it_is_torchs(monkeypatch):
    monkeypatch.setattr(linear, "BY_CONVOLUTION", False)
    monkeypatch.setattr(linear.F, "conv2d", None)
    assert Linear(6, 5)(torch.rand(4, 6)).shape == (4, 5)


def test_nothing_gives_nothing():
    assert Linear(6, 5)(torch.rand(0, 6)).shape == (0, 5)


def test_under_autocast_it_is_bf16():
    layer, x = Linear(6, 5), torch.rand(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
