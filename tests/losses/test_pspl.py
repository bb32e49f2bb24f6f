"""PSPL against a transcription of its equation pixel by pixel, its SSIM against others', limits and the start."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from losses import PSPL, Target
from losses.pspl import MIN_SIGMA, ssim_map


def images(size=14, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, size, size + 3, generator=random, dtype=dtype) * 2 - 1
    return (hr + 0.3 * torch.randn(hr.shape, generator=random, dtype=dtype)).clamp(-1, 1), hr


def naive_ssim(a, b, y, x):
    """SSIM of one pixel of planes (H,W) in [0,1], zeros around them, from windowed means."""
    weights = {(i, j): math.exp(-(i * i + j * j) / 4.5) for i in range(-5, 6) for j in range(-5, 6)}
    total = sum(weights.values())

    def mean(f):
        inside = {k: w for k, w in weights.items() if 0 <= y + k[0] < a.shape[0] and 0 <= x + k[1] < a.shape[1]}
        return sum(w * f(a[y + i, x + j], b[y + i, x + j]) for (i, j), w in inside.items()) / total

    ma, mb = mean(lambda p, q: p), mean(lambda p, q: q)
    va, vb = mean(lambda p, q: p * p) - ma**2, mean(lambda p, q: q * q) - mb**2
    cov = mean(lambda p, q: p * q) - ma * mb
    return (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))


def test_ssim_of_single_pixels():
    a, b = ((x + 1) / 2 for x in images())
    ours = ssim_map(a, b)
    for y, x in ((0, 0), (5, 3), (13, 16), (7, 8)):
        expected = naive_ssim(a[1, 2].numpy(), b[1, 2].numpy(), y, x)
        assert ours[1, 2, y, x].item() == pytest.approx(expected, rel=1e-9)


def test_ssim_inside_is_that_of_scikit_image():
    a, b = ((x + 1) / 2 for x in images(24))
    _, theirs = structural_similarity(
        a[0].numpy(),
        b[0].numpy(),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    np.testing.assert_allclose(ssim_map(a, b)[0, :, 5:-5, 5:-5].numpy(), theirs[:, 5:-5, 5:-5], rtol=1e-8)


@pytest.mark.parametrize("pixel, power", [("L1", 1), ("MSE", 2)])
@pytest.mark.parametrize("epoch", [0.75, 3.5])
def test_value_and_gradient(pixel, power, epoch):
    """w = max exp(-((SSIM + 1)/sigma)^2), a constant; loss = mean |w sr - w hr|^power."""
    sr, hr = (x.float() for x in images())
    sr.requires_grad_()
    loss = PSPL(pixel, alpha=0.8, beta=0.1, maximum=3.0)
    ours = loss(sr, Target(hr), epoch)
    w = 3.0 * torch.exp(-(((ssim_map((hr + 1) / 2, (sr.detach() + 1) / 2) + 1) / (0.8 * epoch + 0.1)) ** 2))
    expected = (w * sr - w * hr).abs().pow(power).mean()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, sr)[0] for x in (ours, expected)))


@pytest.mark.parametrize("pixel, power", [("L1", 1), ("MSE", 2)])
def test_an_old_training_has_the_plain_loss_scaled(pixel, power):
    sr, hr = (x.float() for x in images())
    plain = (sr - hr).abs().pow(power).mean()
    torch.testing.assert_close(PSPL(pixel, maximum=3.0)(sr, Target(hr), 1e6), 3.0**power * plain)


@pytest.mark.parametrize("alpha, beta", [(1.0, 0.0), (0.0, 0.0), (0.3, 0.0)])
def test_something_learns_from_the_first_step_on(alpha, beta):
    """The published sigma is 0 there, and every weight 0 or NaN."""
    loss = PSPL("L1", alpha=alpha, beta=beta)
    assert loss.sigma(0) == MIN_SIGMA
    for sr, hr in (images(dtype=torch.float32), (torch.full((1, 3, 12, 12), 0.01), torch.zeros(1, 3, 12, 12))):
        sr.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(sr, Target(hr), 0), sr)
        assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.99


def test_bad_pixels_come_first():
    sr, hr = (x.float() for x in images(32))
    sr[..., :16] = hr[..., :16]  # the left is perfect
    young, old = (PSPL()(sr.clone().requires_grad_(), Target(hr), epoch) for epoch in (1, 50))
    weights = [PSPL().weight(sr, hr, epoch) for epoch in (1, 50)]
    assert weights[0][..., :8].max() < 0.05 < weights[0][..., 24:].mean()
    assert weights[1].min() > 1.99 and young < old


def test_images_that_are_equal_are_no_danger():
    hr = torch.zeros(1, 3, 12, 12)
    sr = hr.clone().requires_grad_()
    loss = PSPL()(sr, Target(hr), 5)
    loss.backward()
    assert loss == 0 and not sr.grad.any()


def test_ssim_is_not_rounded_to_bf16():
    sr, hr = (x.float() for x in images())
    full = PSPL().weight(sr, hr, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(PSPL().weight(sr, hr, 2.0), full)
