"""Every loss that a run can name: built from the default settings, called alike, judged where it says so."""

import inspect

import pytest
import torch

from configs import Config
from losses import LOSSES, NEEDS_JUDGE, Target


class CountingDistance:
    calls = 0

    def __init__(self, hr):
        self.hr = hr

    def __call__(self, images):
        self.calls += 1
        return (images - self.hr).abs().mean(dim=(-3, -2, -1))


def images():
    return torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_a_scalar_with_a_gradient(name):
    sr, hr = images()
    sr.requires_grad_()
    target = Target(hr, CountingDistance(hr))
    loss = LOSSES[name](Config())(sr, target, 0)
    loss.backward()
    assert loss.shape == () and loss > 0 and sr.grad.isfinite().all() and sr.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_called_as_the_others(name):
    loss = LOSSES[name](Config())
    assert list(inspect.signature(loss.forward).parameters) == ["sr", "target", "epoch"]
    if loss.helper is not None:
        assert list(inspect.signature(loss.helper_loss).parameters) == ["sr", "target", "epoch"]


@pytest.mark.parametrize("name", LOSSES)
def test_judge_is_asked_where_needed_and_only_there(name):
    sr, hr = images()
    distance = CountingDistance(hr)
    loss = LOSSES[name](Config())
    loss(sr, Target(hr, distance), 0)
    if loss.helper is not None:
        loss.helper_loss(sr, Target(hr, distance), 0)
    assert (distance.calls > 0) == (name in NEEDS_JUDGE)
    if name not in NEEDS_JUDGE:
        loss(sr, Target(hr), 0)


def test_names_that_need_a_judge_exist():
    assert NEEDS_JUDGE <= set(LOSSES)


def test_settings_reach_tlw():
    settings = Config(samples=5, eps=0.01, k_start=0.2, k_end=0.6, k_epochs=7, m_step="released")
    for name in ("L1+TLW", "MSE+TLW"):
        loss = LOSSES[name](settings)
        assert (loss.samples, loss.eps, loss.k(0)) == (5, 0.01, 0.2)
        assert loss.k(7) == pytest.approx(0.2 + 0.4 * (1 - 0.36787944))
        assert loss.m_step is not LOSSES[name](Config()).m_step


def test_l1_and_mse_are_not_mixed_up():
    sr, hr = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 3, 4, 4)
    assert LOSSES["L1"](Config())(sr, Target(hr), 0) == 0.5 and LOSSES["MSE"](Config())(sr, Target(hr), 0) == 0.25
    target = Target(hr, CountingDistance(hr))
    weighted = {}
    for name in ("L1+TLW", "MSE+TLW"):
        torch.manual_seed(0)
        weighted[name] = LOSSES[name](Config())(sr, target, 0)
    # MSE's weights are divided by |sr - hr| + 0.1 = 0.6 and its error is 0.25.
    torch.testing.assert_close(weighted["MSE+TLW"] / weighted["L1+TLW"], torch.tensor(0.25 / 0.6 / 0.5))
