"""The adversarial losses against numbers computed by hand, and who learns from them."""

import math

import pytest
import torch
from torch import nn

from losses import Adversarial, Target


class Logits(nn.Module):
    """A discriminator whose logit is weight * the mean of an image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.seen = []

    def forward(self, images):
        self.seen.append(images.requires_grad)
        return (self.weight * images.mean(dim=(1, 2, 3)))[:, None]


def flat(*values):
    """An image of each value."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()


# Logits are 2 * these: sr 0.2 and -0.6, mean -0.2; hr 1.0 and 0.4, mean 0.7.
SR, HR = (0.1, -0.3), (0.5, 0.2)


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


# -log sigmoid(c) for what should be real, -log(1 - sigmoid(c)) = -log sigmoid(-c) for what should not.
VANILLA_D = -(log_sigmoid(1.0) + log_sigmoid(0.4)) / 2 - (log_sigmoid(-0.2) + log_sigmoid(0.6)) / 2
VANILLA_G = -(log_sigmoid(0.2) + log_sigmoid(-0.6)) / 2
RAGAN_D = -(log_sigmoid(1.2) + log_sigmoid(0.6)) / 2 - (log_sigmoid(0.5) + log_sigmoid(1.3)) / 2
RAGAN_G = -(log_sigmoid(-1.2) + log_sigmoid(-0.6)) / 2 - (log_sigmoid(-0.5) + log_sigmoid(-1.3)) / 2


@pytest.mark.parametrize("kind, d, g", [("vanilla", VANILLA_D, VANILLA_G), ("ragan", RAGAN_D, RAGAN_G)])
def test_values(kind, d, g):
    loss = Adversarial(Logits(), kind)
    assert loss.helper_loss(flat(*SR), Target(flat(*HR)), 0).item() == pytest.approx(d, rel=1e-6)
    assert loss(flat(*SR), Target(flat(*HR)), 0).item() == pytest.approx(g, rel=1e-6)


def test_values_in_numbers():
    """The same, worked out once outside this file."""
    numbers = {"VANILLA_D": 1.0309, "VANILLA_G": 0.8178, "RAGAN_D": 0.7079, "RAGAN_G": 2.5079}
    found = {name: globals()[name] for name in numbers}
    assert found == pytest.approx(numbers, abs=2e-4)


@pytest.mark.parametrize("kind", ["vanilla", "ragan"])
def test_gradients(kind):
    """By finite differences, of the SR image and of the discriminator."""
    loss, h = Adversarial(Logits(), kind), 1e-5
    hr = flat(*HR)

    def value(shift, weight, method):
        with torch.no_grad():
            loss.helper.weight.fill_(weight)
        return method(flat(SR[0] + shift, SR[1]), Target(hr), 0)

    sr = flat(*SR).requires_grad_()
    loss(sr, Target(hr), 0).backward()
    slope = (value(h, 2.0, loss.forward) - value(-h, 2.0, loss.forward)) / (2 * h)
    assert sr.grad[0].sum().item() == pytest.approx(slope.item(), rel=1e-6)
    assert loss.helper.weight.grad is None
    value(0, 2.0, loss.helper_loss).backward()
    learned = loss.helper.weight.grad.item()
    slope = (value(0, 2 + h, loss.helper_loss) - value(0, 2 - h, loss.helper_loss)) / (2 * h)
    assert learned == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["vanilla", "ragan"])
def test_each_side_learns_from_its_own_loss_alone(kind):
    loss = Adversarial(Logits(), kind)
    sr = flat(*SR).requires_grad_()
    loss.helper_loss(sr, Target(flat(*HR)), 0).backward()
    assert sr.grad is None and loss.helper.weight.grad is not None
    loss.helper.weight.grad = None
    loss(sr, Target(flat(*HR)), 0).backward()
    assert sr.grad.any() and loss.helper.weight.grad is None and loss.helper.weight.requires_grad
    # descending it makes the discriminator take sr for real
    logits = loss.helper(sr.detach())
    assert (loss.helper(sr.detach() - sr.grad) > logits).all()


def test_parameters_that_did_not_learn_before_do_not_after():
    loss = Adversarial(nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).double())
    loss.helper[1].bias.requires_grad_(False)
    loss(flat(0.1), Target(flat(0.2)), 0)
    assert not loss.helper[1].bias.requires_grad and loss.helper[1].weight.requires_grad


def test_the_vanilla_generator_does_not_look_at_hr():
    loss = Adversarial(Logits())
    loss(flat(*SR).requires_grad_(), Target(flat(*HR)), 0)
    assert loss.helper.seen == [True]


def test_logits_far_out_stay_finite():
    for kind in ("vanilla", "ragan"):
        loss = Adversarial(Logits(), kind)
        sr = flat(-1e4, 1e4).requires_grad_()
        for value in (loss(sr, Target(flat(1e4, -1e4)), 0), loss.helper_loss(sr, Target(flat(1e4, -1e4)), 0)):
            value.backward()
            assert value.isfinite() and sr.grad.isfinite().all()
