"""PSPL against its equation pixel by pixel, its SSIM against others', limits, the guarded start and the first steps."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from data import make_pair, read_rgb
from losses import PSPL, PixelLoss, Target
from losses.pixel import absolute_error, squared_error
from losses.pspl import MIN_SIGMA, RANGES, ssim_map
from models import SR_MODELS


def pair(size=14, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, size, size + 3, generator=random, dtype=dtype) * 2 - 1
    return (hr + 0.3 * torch.randn(hr.shape, generator=random, dtype=dtype)).clamp(-1, 1), hr


def naive_ssim(a, b, y, x, c1=1e-4, c2=9e-4):
    """SSIM of one pixel of planes (H,W), zeros around them, from windowed means."""
    weights = {(i, j): math.exp(-(i * i + j * j) / 4.5) for i in range(-5, 6) for j in range(-5, 6)}
    total = sum(weights.values())

    def mean(f):
        inside = {k: w for k, w in weights.items() if 0 <= y + k[0] < a.shape[0] and 0 <= x + k[1] < a.shape[1]}
        return sum(w * f(a[y + i, x + j], b[y + i, x + j]) for (i, j), w in inside.items()) / total

    ma, mb = mean(lambda p, q: p), mean(lambda p, q: q)
    va, vb = mean(lambda p, q: p * p) - ma**2, mean(lambda p, q: q * q) - mb**2
    cov = mean(lambda p, q: p * q) - ma * mb
    return (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


def test_ssim_of_single_pixels():
    a, b = ((x + 1) / 2 for x in pair())
    ours = ssim_map(a, b)
    for y, x in ((0, 0), (5, 3), (13, 16), (7, 8)):
        expected = naive_ssim(a[1, 2].numpy(), b[1, 2].numpy(), y, x)
        assert ours[1, 2, y, x].item() == pytest.approx(expected, rel=1e-9)


def test_ssim_with_the_authors_constants():
    """Images in [0,255], constants of images in [0,1]; little contrast, where they matter."""
    a, b = (0.5 + x / 200 for x in pair())
    ours = ssim_map(a, b, RANGES["authors"])
    for y, x in ((0, 0), (5, 3), (13, 16), (7, 8)):
        planes = (255 * a[1, 2]).numpy(), (255 * b[1, 2]).numpy()
        assert ours[1, 2, y, x].item() == pytest.approx(naive_ssim(*planes, y, x), rel=1e-6)
    assert (ours - ssim_map(a, b)).abs().max() > 0.1


def test_ssim_inside_is_that_of_scikit_image():
    a, b = ((x + 1) / 2 for x in pair(24))
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
    """w = max exp(-((SSIM + 1)/sigma)^2), a constant; loss = mean |w sr - w hr|^power of images in [0,255]."""
    sr, hr = (x.float() for x in pair())
    sr.requires_grad_()
    loss = PSPL(pixel, alpha=0.8, beta=0.1, maximum=3.0)
    ours = loss(sr, Target(hr), epoch)
    w = 3.0 * torch.exp(-(((ssim_map((hr + 1) / 2, (sr.detach() + 1) / 2) + 1) / (0.8 * epoch + 0.1)) ** 2))
    expected = (w * (sr + 1) * 127.5 - w * (hr + 1) * 127.5).abs().pow(power).mean()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, sr)[0] for x in (ours, expected)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pixel, power", [("L1", 1), ("MSE", 2)])
def test_an_old_training_has_the_plain_loss_scaled(pixel, power):
    sr, hr = (x.float() for x in pair())
    plain = (sr - hr).abs().pow(power).mean()
    torch.testing.assert_close(PSPL(pixel, maximum=3.0)(sr, Target(hr), 1e6), (3.0 * 127.5) ** power * plain)


@pytest.mark.parametrize("alpha, beta", [(1.0, 0.0), (0.0, 0.0), (0.3, 0.0)])
def test_something_learns_from_the_first_step_on(alpha, beta):
    """The published sigma is 0 there, and every weight 0 or NaN."""
    loss = PSPL("L1", alpha=alpha, beta=beta)
    assert loss.sigma(0) == MIN_SIGMA
    for sr, hr in (pair(dtype=torch.float32), (torch.full((1, 3, 12, 12), 0.01), torch.zeros(1, 3, 12, 12))):
        sr.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(sr, Target(hr), 0), sr)
        assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.99


def moved(pixel, images, paced: bool, ssim="standard") -> float:
    """How far 40 steps of Adam move a small EDSR, on the photographs' corners."""
    patches = [make_pair(read_rgb(path)[:48, :48], 4, 4) for path in sorted(images.iterdir())]
    lr, hr = (torch.stack(some) for some in zip(*patches))
    torch.manual_seed(0)
    net = SR_MODELS["EDSR"](scale=4, channels=8, blocks=1)
    loss = (
        PSPL(pixel, epoch_steps=1000, ssim=ssim)
        if paced
        else PixelLoss({"L1": absolute_error, "MSE": squared_error}[pixel])
    )
    start = [p.detach().clone() for p in net.parameters()]
    opt = torch.optim.Adam(net.parameters(), lr=1e-4)
    for step in range(40):
        loss.begin_step(step)
        opt.zero_grad()
        loss(net(lr), Target(hr), step / 10).backward()
        opt.step()
    return sum((p - before).square().sum().item() for p, before in zip(net.parameters(), start)) ** 0.5


@pytest.mark.parametrize("pixel", ["L1", "MSE"])
def test_the_first_steps_go_as_far_as_those_of_the_plain_loss(pixel, images):
    plain = moved(pixel, images, paced=False)
    assert all(moved(pixel, images, True, ssim) > 0.85 * plain for ssim in RANGES)


def test_age_is_counted_in_steps():
    """The authors' epoch is 1,000 steps, however many images there are; without that setting it is the caller's."""
    loss = PSPL(alpha=2.0, beta=0.5, epoch_steps=1000)
    for step, sigma in ((0, 0.5), (1000, 2.5), (2500, 5.5)):
        loss.begin_step(step)
        assert loss.sigma(epoch=77) == sigma and loss.log_scalars(None, 77) == {"sigma": sigma}
    assert PSPL(alpha=2.0, beta=0.5).sigma(3) == 6.5


@pytest.mark.parametrize("pixel", ["L1", "MSE"])
def test_a_phase_is_over_before_the_loss_has_grown_much(pixel):
    """Else its growth by orders of magnitude would be taken for divergence."""
    sr, hr = (x.float() for x in pair())
    sr = hr + 0.01 * (sr - hr)  # nearly perfect: what grows most
    loss, of_phase = PSPL(pixel, epoch_steps=1000), {}
    for step in range(400, 5000, 5):
        loss.begin_step(step)
        of_phase.setdefault(loss.phase(0), []).append(loss(sr, Target(hr), 0).item())
    assert len(of_phase) > 10 and all(max(of) < 3 * min(of) for of in of_phase.values())
    assert max(of_phase[0]) > 1e4 * min(of_phase[max(of_phase)])


def test_flat_areas_have_the_ssim_of_their_pixels():
    """The authors' constants are smaller than float32's rounding of squares."""
    hr = torch.full((1, 3, 24, 24), 0.7)
    weight = PSPL(ssim="authors").weight(hr.clone(), hr, 1.0)
    torch.testing.assert_close(weight, torch.full_like(hr, 2 * math.exp(-4)))


def test_bad_pixels_come_first():
    sr, hr = (x.float() for x in pair(32))
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
    sr, hr = (x.float() for x in pair())
    full = PSPL().weight(sr, hr, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(PSPL().weight(sr, hr, 2.0), full)
