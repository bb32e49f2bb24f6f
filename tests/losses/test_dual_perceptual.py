"""The Dual Perceptual loss against its equation, the limits of mu, and a second term that has vanished."""

import pytest
import torch

from losses import DualPerceptual, Target


def target(hr, second_power=2):
    """Two distances of each image to hr, of different magnitudes."""
    return Target(
        hr,
        features={
            "a": lambda images: (images - hr).abs().mean(dim=(-3, -2, -1)),
            "b": lambda images: 30 * (images - hr).abs().pow(second_power).mean(dim=(-3, -2, -1)),
        },
    )


def images():
    sr, hr = torch.rand(2, 2, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return sr.requires_grad_(), hr


@pytest.mark.parametrize("mu", [0.2, 0.5, 20.0])
def test_value_and_gradient(mu):
    sr, hr = images()
    ours = DualPerceptual(("a", "b"), mu, eps=0.25)(sr, target(hr), 0)
    l_a, l_b = (sr - hr).abs().mean(), 30 * (sr - hr).square().mean()
    constant = l_a.item() / (mu * l_b.item() + 0.25)
    expected = l_a + constant * l_b
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, sr, retain_graph=True)[0] for x in (ours, expected)))


def test_the_second_term_is_one_in_mu_of_the_first():
    sr, hr = images()
    one = DualPerceptual(("a",))(sr, target(hr), 0)
    for mu in (0.2, 0.5, 1.0, 20.0):
        torch.testing.assert_close(
            DualPerceptual(("a", "b"), mu)(sr, target(hr), 0) / one, torch.tensor(1 + 1 / mu), rtol=1e-5, atol=0
        )


def test_one_extractor_or_a_large_mu_is_the_single_perceptual_loss():
    sr, hr = images()
    l_a = (sr - hr).abs().mean()
    single, limit = DualPerceptual(("a",))(sr, target(hr), 0), DualPerceptual(("a", "b"), 1e12)(sr, target(hr), 0)
    (gradient,) = torch.autograd.grad(l_a, sr)
    for loss in (single, limit):
        torch.testing.assert_close(loss, l_a)
        torch.testing.assert_close(torch.autograd.grad(loss, sr)[0], gradient)


def test_without_dynamic_weighting_it_is_the_sum():
    sr, hr = images()
    for mu in (0.2, 20.0):
        ours = DualPerceptual(("a", "b"), mu, dynamic=False)(sr, target(hr), 0)
        expected = (sr - hr).abs().mean() + 30 * (sr - hr).square().mean()
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(torch.autograd.grad(x, sr, retain_graph=True)[0] for x in (ours, expected)))
    assert DualPerceptual(("a",), dynamic=False)(sr, target(hr), 0) == (sr - hr).abs().mean()


def test_the_order_of_the_extractors_counts():
    sr, hr = images()
    assert DualPerceptual(("a", "b"))(sr, target(hr), 0) < 0.5 * DualPerceptual(("b", "a"))(sr, target(hr), 0)


def test_a_second_term_of_zero():
    """Features that say nothing: the loss is the first term, with its gradient."""
    sr, hr = images()
    distances = {"a": target(hr).features["a"], "b": lambda images: (0 * images).abs().mean(dim=(-3, -2, -1))}
    (gradient,) = torch.autograd.grad(DualPerceptual(("a", "b"))(sr, Target(hr, features=distances), 0), sr)
    torch.testing.assert_close(gradient, torch.autograd.grad((sr - hr).abs().mean(), sr)[0])


def test_equal_images():
    hr = torch.zeros(1, 3, 4, 4)
    sr = hr.clone().requires_grad_()
    loss = DualPerceptual(("a", "b"))(sr, target(hr), 0)
    loss.backward()
    assert loss == 0 and not sr.grad.any()
