"""The weight criterion and both steps of TLW: against the authors' released code, against the paper's equations
written out, and their properties."""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from losses import TLW, Target, k_schedule, weight_criterion
from losses.tlw import paper_loss, released_loss, weigh_l1, weigh_mse
from losses.weighting import relaxed_bernoulli
from metrics.judges import JUDGES

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "golden" / "tlw_golden.npz")
ALEX = ROOT.parent / "shared" / "weights" / "alexnet_features.pth"
needs_alex = pytest.mark.skipif(not ALEX.is_file(), reason="AlexNet's ImageNet weights are not beside the repository")
WEIGH = {"l1": weigh_l1, "l2": weigh_mse}


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def random(*shape, seed=0, low=-1.0) -> torch.Tensor:
    return low + (1 - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixel_judge(a, b):
    """The simplest judge: mean absolute difference per image."""
    return (a - b).abs().mean(dim=(-3, -2, -1))


def example(b=2, h=6, w=5, t=3):
    """hr, sr (B,3,H,W) and w (T,B,3,H,W)."""
    return random(b, 3, h, w, seed=1), random(b, 3, h, w, seed=2), random(t, b, 3, h, w, seed=3, low=0.0)


# Against the released code


@lru_cache
def judged(tag: str) -> Target:
    judge = JUDGES[{"lpips": "lpips-alex", "unit": "lpips-alex-unweighted"}[tag]](weights=(str(ALEX),))
    return Target.judged_by(judge, golden("hr"))


@needs_alex
@pytest.mark.parametrize("tag", ["lpips", "unit"])
class TestReleased:
    def test_judge(self, tag):
        ours = judged(tag).distance(golden("sr"))
        torch.testing.assert_close(ours, golden(f"judge_{tag}_sr_hr").flatten(), rtol=1e-5, atol=0)

    def test_weight_criterion(self, tag):
        ours = weight_criterion(golden(f"ws_{tag}"), golden("sr"), judged(tag))
        torch.testing.assert_close(ours, golden(f"wc_eps0.001_{tag}"), rtol=1e-5, atol=0)

    def test_e_step(self, tag):
        w = golden(f"ws_{tag}")[0].requires_grad_()
        loss = -weight_criterion(w, golden("sr"), judged(tag)).log().mean()
        (gradient,) = torch.autograd.grad(loss, w)
        assert loss.item() == pytest.approx(GOLDEN[f"loss_phi_{tag}"].item(), abs=5e-6)
        expected = golden(f"grad_phi_{tag}_every_third")
        torch.testing.assert_close(gradient[..., ::3, ::3], expected, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("pixel", ["l1", "l2"])
    def test_m_step(self, tag, pixel):
        ws, sr = golden(f"ws_{tag}"), golden("sr").requires_grad_()
        with torch.no_grad():
            wc = weight_criterion(ws, sr, judged(tag), far_eps=1e-8)
        loss = released_loss(ws, wc, sr, golden("hr"), WEIGH[pixel])
        (gradient,) = torch.autograd.grad(loss, sr)
        assert loss.item() == pytest.approx(GOLDEN[f"loss_theta_{tag}_{pixel}"].item(), rel=1e-5)
        expected = golden(f"grad_theta_{tag}_{pixel}_every_third")
        torch.testing.assert_close(gradient[..., ::3, ::3], expected, rtol=1e-5, atol=1e-9)


# Against the paper's equations


def test_weight_criterion_is_equation_4():
    hr, sr, w = example()
    ours = weight_criterion(w, sr, Target.judged_by(pixel_judge, hr), eps=0.02)
    for i in range(3):
        x_w = (1 - w[i]) * sr + w[i] * hr
        x_rest = w[i] * sr + (1 - w[i]) * hr
        expected = (pixel_judge(x_rest, hr) + 0.02) / (pixel_judge(x_w, hr) + 0.02)
        torch.testing.assert_close(ours[i], expected)


def equation_13(w, wc, sr, hr, pixel):
    total = 0
    for i in range(len(w)):
        for b in range(len(sr)):
            if pixel == "l1":
                error = w[i, b] * (hr[b] - sr[b]).abs()
            else:
                error = w[i, b] / ((hr[b] - sr[b]).abs().detach() + 0.1) * (hr[b] - sr[b]) ** 2
            total = total + wc[i, b] * error.mean() / len(sr)
    return total


def log_mean_exp(w, wc, sr, hr, pixel):
    total = 0
    for b in range(len(sr)):
        likelihood = 0
        for i in range(len(w)):
            gap = (hr[b] - sr[b]).abs()
            error = w[i, b] * gap if pixel == "l1" else w[i, b] / (gap.detach() + 0.2) * gap**2
            likelihood = likelihood + wc[i, b] * (-error.mean()).exp()
        total = total - (likelihood / wc[:, b].sum()).log() / len(sr)
    return total


@pytest.mark.parametrize("pixel", ["l1", "l2"])
@pytest.mark.parametrize("ours, written_out", [(paper_loss, equation_13), (released_loss, log_mean_exp)])
def test_m_step_loss_written_out(ours, written_out, pixel):
    hr, sr, w = example()
    wc = random(3, 2, seed=4, low=0.2)
    sr.requires_grad_()
    loss, expected = ours(w, wc, sr, hr, WEIGH[pixel]), written_out(w, wc, sr, hr, pixel)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, sr), torch.autograd.grad(expected, sr))


@pytest.mark.parametrize("m_step, written_out", [("paper", equation_13), ("released", log_mean_exp)])
@pytest.mark.parametrize("name, pixel", [("L1", "l1"), ("MSE", "l2")])
def test_whole_m_step(name, pixel, m_step, written_out):
    """TLW.forward: T fresh samples of the updated network, their WC and the loss, with the same random numbers."""
    hr, sr, _ = example()
    tlw = TLW(name, samples=4, m_step=m_step).double()
    target = Target.judged_by(pixel_judge, hr)
    torch.manual_seed(7)
    loss = tlw(sr.requires_grad_(), target, epoch=50)
    torch.manual_seed(7)
    with torch.no_grad():
        mu = tlw.helper(hr, sr, k_schedule(50))
        w = relaxed_bernoulli(mu, torch.rand(4, *mu.shape))
        wc = weight_criterion(w, sr, target, 1e-3, 1e-8 if m_step == "released" else 1e-3)
    expected = written_out(w, wc, sr, hr, pixel)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, sr), torch.autograd.grad(expected, sr))


def test_whole_e_step():
    hr, sr, _ = example()
    tlw = TLW(eps=0.01).double()
    target = Target.judged_by(pixel_judge, hr)
    torch.manual_seed(7)
    loss = tlw.helper_loss(sr, target, epoch=50)
    torch.manual_seed(7)
    mu = tlw.helper(hr, sr, k_schedule(50))
    w = relaxed_bernoulli(mu, torch.rand(mu.shape))
    expected = -weight_criterion(w, sr, target, 0.01).log().sum() / 2
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    "epoch, k", [(0, 0.3), (100, 0.3 + 0.6 * (1 - 0.60653066)), (200, 0.3 + 0.6 * (1 - 0.36787944))]
)
def test_k_schedule_of_the_paper(epoch, k):
    assert k_schedule(epoch) == pytest.approx(k, abs=1e-8)


def test_k_schedule_stays_below_its_end():
    values = [k_schedule(epoch, 0.2, 0.7, 10) for epoch in range(100)]
    assert values == sorted(values) and values[0] == 0.2 and 0.699 < values[-1] < 0.7


# Properties


def test_weight_criterion_of_half_is_one():
    hr, sr, _ = example()
    wc = weight_criterion(torch.full_like(hr, 0.5), sr, Target.judged_by(pixel_judge, hr))
    torch.testing.assert_close(wc, torch.ones_like(wc))


def test_weight_criterion_of_the_complement_is_the_inverse():
    hr, sr, w = example()
    target = Target.judged_by(pixel_judge, hr)
    product = weight_criterion(w, sr, target) * weight_criterion(1 - w, sr, target)
    torch.testing.assert_close(product, torch.ones_like(product))


def test_weight_criterion_rewards_the_wrong_pixels():
    hr = torch.zeros(1, 3, 4, 4)
    sr = hr.clone()
    sr[..., :2] = 1
    picks = (sr > 0).float()
    target = Target.judged_by(pixel_judge, hr)
    assert weight_criterion(picks, sr, target).item() == pytest.approx((0.5 + 1e-3) / 1e-3, rel=1e-5)
    assert weight_criterion(1 - picks, sr, target).item() == pytest.approx(1e-3 / (0.5 + 1e-3), rel=1e-5)


def test_weight_criterion_takes_the_distance_as_positive():
    hr, sr, w = example()
    negative = weight_criterion(w, sr, Target.judged_by(lambda a, b: -pixel_judge(a, b), hr))
    torch.testing.assert_close(negative, weight_criterion(w, sr, Target.judged_by(pixel_judge, hr)))


IMAGES = {
    "random": (random(2, 3, 6, 6, seed=1), random(2, 3, 6, 6, seed=2)),
    "identical": (random(2, 3, 6, 6, seed=1), random(2, 3, 6, 6, seed=1)),
    "constant": (torch.full((2, 3, 6, 6), 0.3).double(), torch.full((2, 3, 6, 6), -0.8).double()),
}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
def test_weight_criterion_is_positive_and_finite(images, value):
    hr, sr = (x.to(torch.get_default_device()) for x in IMAGES[images])
    w = torch.full_like(hr, value, requires_grad=True)
    wc = weight_criterion(w, sr, Target.judged_by(pixel_judge, hr))
    assert (wc > 0).all() and wc.isfinite().all()
    wc.log().sum().backward()
    assert w.grad.isfinite().all()


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("m_step", ["paper", "released"])
@pytest.mark.parametrize("pixel", ["L1", "MSE"])
def test_losses_and_gradients_are_finite(images, m_step, pixel):
    hr, sr = (x.to(torch.get_default_device()) for x in IMAGES[images])
    sr = sr.clone().requires_grad_()
    tlw = TLW(pixel, m_step=m_step).double()
    target = Target.judged_by(pixel_judge, hr)
    helper_loss = tlw.helper_loss(sr.detach(), target, 0)
    helper_loss.backward()
    loss = tlw(sr, target, 0)
    loss.backward()
    assert helper_loss.isfinite() and loss.isfinite() and sr.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in tlw.helper.parameters())


def test_samples_in_one_batch_equal_one_at_a_time():
    hr, sr, w = example()
    target = Target.judged_by(pixel_judge, hr)
    together = weight_criterion(w, sr, target)
    assert together.shape == (3, 2)
    torch.testing.assert_close(together, torch.stack([weight_criterion(one, sr, target) for one in w]))


def test_images_of_a_batch_do_not_mix():
    hr, sr, w = example()
    together = weight_criterion(w, sr, Target.judged_by(pixel_judge, hr))
    for b in range(2):
        one = slice(b, b + 1)
        alone = weight_criterion(w[:, one], sr[one], Target.judged_by(pixel_judge, hr[one]))
        torch.testing.assert_close(together[:, one], alone)


def test_e_step_gradient_reaches_the_whole_weighting_network():
    hr, sr, _ = example()
    tlw = TLW().double()
    tlw.helper_loss(sr, Target.judged_by(pixel_judge, hr), 0).backward()
    for name, p in tlw.helper.named_parameters():
        assert p.grad is not None, name
        # BatchNorm subtracts whatever the biases right before it add.
        assert name in ("conv.0.bias", "conv.3.bias", "conv.6.bias") or p.grad.any(), name
    assert sr.grad is None


def test_m_step_gradient_reaches_the_image_alone():
    hr, sr, _ = example()
    sr.requires_grad_()
    tlw = TLW().double()
    tlw(sr, Target.judged_by(pixel_judge, hr), 0).backward()
    assert (sr.grad != 0).any(dim=(1, 2, 3)).all()
    assert all(p.grad is None for p in tlw.parameters())


def test_custom_judge_equals_our_own():
    """Any judge(a, b) -> (B,), or (B,1,1,1) as the lpips package returns it, equals one with `with_reference`."""

    class Ours:
        def with_reference(self, hr):
            return lambda images: pixel_judge(images, hr)

    hr, sr, w = example()
    mixtures = torch.stack([w, 1 - w])
    expected = Target.judged_by(Ours(), hr).distance(mixtures)
    assert expected.shape == (2, 3, 2)
    for judge in (pixel_judge, lambda a, b: pixel_judge(a, b)[:, None, None, None]):
        target = Target.judged_by(judge, hr)
        torch.testing.assert_close(target.distance(mixtures), expected)
        torch.testing.assert_close(target.distance(sr), pixel_judge(sr, hr))


def test_no_judge_no_distance():
    assert Target.judged_by(None, torch.zeros(1, 3, 2, 2)).distance is None


@needs_alex
def test_lpips_as_a_custom_judge():
    judge = JUDGES["lpips-alex"](weights=(str(ALEX),))
    hr, sr, ws = golden("hr"), golden("sr"), golden("ws_lpips")
    ours = weight_criterion(ws, sr, Target.judged_by(judge, hr))
    custom = weight_criterion(ws, sr, Target.judged_by(lambda a, b: judge(a, b), hr))
    torch.testing.assert_close(custom, ours, rtol=1e-4, atol=0)


def test_e_step_learns_to_pick_the_wrong_pixels():
    torch.manual_seed(0)
    hr = random(1, 3, 16, 16, seed=1).float()
    sr = hr.clone()
    sr[..., :8] = 0  # wrong on the left
    target = Target.judged_by(pixel_judge, hr)
    tlw = TLW()
    opt = torch.optim.Adam(tlw.helper.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = tlw.helper_loss(sr, target, epoch=0)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    mu = tlw.helper(hr, sr, 0.3).detach()
    assert losses[-1] < losses[0] - math.log(2)  # WC has more than doubled
    assert mu[..., :8].mean() > 2 * mu[..., 8:].mean()
