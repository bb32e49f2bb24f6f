"""FixedSum, the sampler and the weighting network: against the TLW authors' released code, and their properties."""

from pathlib import Path

import numpy as np
import pytest
import torch

from losses.weighting import WeightingNet, fixed_sum, relaxed_bernoulli

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tlw_golden.npz")


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def random(*shape, seed=0, low=0.0, high=1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [0.1, 0.3, 0.5, 0.75, 0.9])
def test_fixed_sum_equals_released(k):
    ours = fixed_sum(golden("fixedsum_in").double(), k)
    torch.testing.assert_close(ours, golden(f"fixedsum_k{k}"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.0, 0.01), (0.99, 1.0)])
@pytest.mark.parametrize("k", [0.05, 0.5, 0.9])
def test_fixed_sum_moves_the_mean_to_k_and_keeps_range_and_order(low, high, k):
    p = random(2, 3, 9, 7, low=low, high=high)
    moved = fixed_sum(p, k)
    torch.testing.assert_close(moved.mean(dim=(-2, -1)), torch.full((2, 3), k, dtype=p.dtype), rtol=0, atol=1e-12)
    assert moved.min() >= 0 and moved.max() <= 1
    assert torch.equal(moved.flatten(2).argsort(), p.flatten(2).argsort())


def test_fixed_sum_takes_the_branch_per_image_and_channel():
    p = random(2, 2, 6, 6) * torch.tensor([[0.1, 1.0], [1.0, 0.1]])[..., None, None]
    moved = fixed_sum(p, 0.3)
    for b in range(2):
        for c in range(2):
            torch.testing.assert_close(moved[b, c], fixed_sum(p[b : b + 1, c : c + 1], 0.3)[0, 0])
    assert (moved > p).all(dim=(-2, -1)).tolist() == [[True, False], [False, True]]


def test_fixed_sum_leaves_a_mean_of_k_alone():
    p = torch.tensor([0.125, 0.25, 0.375, 0.25], dtype=torch.float64).view(1, 1, 2, 2)
    assert torch.equal(fixed_sum(p, 0.25), p)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_fixed_sum_of_a_saturated_map(value):
    p = torch.full((1, 3, 4, 5), value, requires_grad=True)
    moved = fixed_sum(p, 0.3)
    torch.testing.assert_close(moved.detach(), torch.full_like(p, 0.3))
    (moved * random(1, 3, 4, 5)).sum().backward()
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("k", [0.1, 0.9])
def test_fixed_sum_gradient(k):
    p = random(2, 2, 3, 4, low=0.2, high=0.8).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: fixed_sum(p, k), p)


@pytest.mark.parametrize("k", [0.1, 0.9])
def test_fixed_sum_derivative_is_equation_6(k):
    p = random(4, 5)
    jacobian = torch.autograd.functional.jacobian(lambda p: fixed_sum(p[None, None], k)[0, 0], p)
    ours = jacobian.reshape(20, 20).diagonal().reshape(4, 5)
    n, s = p.numel(), p.sum()
    below = n * (1 - k) * (n - s + p - 1) / (n - s) ** 2
    above = k * n * (s - p) / s**2
    torch.testing.assert_close(ours, below if k * n > s else above)


def filled_weighting_net() -> WeightingNet:
    """Parameters by the rule that the golden sample was made with."""
    net = WeightingNet()
    for i, (name, value) in enumerate(net.state_dict().items()):
        if "num_batches" in name:
            continue
        z = np.random.RandomState(1000 + i).standard_normal(value.numel())
        if name.endswith("running_var"):
            z = 1 + 0.1 * z
        elif value.ndim == 1 and name.endswith("weight"):
            z = 1 + 0.1 * z.clip(-3, 3)
        elif value.ndim == 1:
            z = 0.05 * z
        else:
            z = z * (0.5 / (z.size / len(value))) ** 0.5
        value.copy_(torch.from_numpy(z.reshape(value.shape)))
    return net


def test_sample_equals_released():
    with torch.no_grad():
        mu = filled_weighting_net().train()(golden("hr"), golden("sr"), 0.4)
        w = relaxed_bernoulli(mu, golden("noise"))
    torch.testing.assert_close(w[..., ::3, ::3], golden("w_k0.4_every_third"), rtol=0, atol=1e-4)


def test_weighting_network():
    net = WeightingNet()
    assert sum(p.numel() for p in net.parameters()) == 160_387
    hr, sr = (random(2, 3, 10, 11, seed=seed, low=-1).float() for seed in (1, 2))
    mu = net(hr, sr, 0.3)
    assert mu.shape == hr.shape and mu.min() >= 0 and mu.max() <= 1
    torch.testing.assert_close(mu.mean(dim=(-2, -1)), torch.full((2, 3), 0.3))
    assert not torch.allclose(mu, net(sr, hr, 0.3))


def test_running_statistics_move_without_gradients_too():
    """The M-step's pass is under no_grad and has to move them, as the released code's does."""
    net = WeightingNet().train()
    before = net.conv[1].running_mean.clone()
    with torch.no_grad():
        net(torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), 0.3)
    assert not torch.equal(net.conv[1].running_mean, before) and net.conv[1].num_batches_tracked == 1
    before = net.conv[1].running_mean.clone()
    net.eval()(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), 0.3)
    assert torch.equal(net.conv[1].running_mean, before)


@pytest.mark.parametrize("mu", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
def test_samples_are_nearly_binary_with_mean_mu(mu):
    w = relaxed_bernoulli(torch.full((1, 1, 1, 1), mu), random(1, 1, 300, 300).float())
    assert w.min() >= 0 and w.max() <= 1
    assert w.mean().item() == pytest.approx(mu, abs=0.01)
    assert ((w < 0.1) | (w > 0.9)).float().mean() > 0.85


def test_samples_are_of_the_binary_concrete_distribution():
    """torch's RelaxedBernoulli (Maddison et al. and Jang et al. 2017): its density is one over the slope of a sample."""
    mu, u = torch.rand(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u.requires_grad_()
    w = relaxed_bernoulli(mu, u, temperature=0.7)
    (slope,) = torch.autograd.grad(w.sum(), u)
    concrete = torch.distributions.RelaxedBernoulli(torch.tensor(0.7).double(), probs=0.999 * mu + 0.0005)
    torch.testing.assert_close(concrete.log_prob(w.detach()), -(slope / 0.999).log())


def test_samples_at_the_ends_are_finite():
    mu = torch.tensor([0.0, 0.5, 1.0])[:, None].requires_grad_()
    w = relaxed_bernoulli(mu, torch.tensor([0.0, 0.5, 1.0]))
    w.sum().backward()
    assert w.isfinite().all() and mu.grad.isfinite().all() and mu.grad[1] > 0


def test_several_samples_by_broadcasting():
    mu, noise = random(2, 3, 4, 5), random(6, 2, 3, 4, 5, seed=1)
    together = relaxed_bernoulli(mu, noise)
    assert together.shape == noise.shape
    for sample, u in zip(together, noise):
        torch.testing.assert_close(sample, relaxed_bernoulli(mu, u))


def test_sample_gradient():
    mu, noise = random(2, 3, low=0.3, high=0.7).requires_grad_(), random(4, 2, 3, seed=1, low=0.3, high=0.7)
    assert torch.autograd.gradcheck(lambda mu: relaxed_bernoulli(mu, noise), mu)


@pytest.mark.parametrize("height, width", [(10, 12), (9, 12), (10, 11), (7, 9), (1, 1)])
def test_weighting_network_at_half_resolution(height, width):
    net = WeightingNet(scale=2)
    hr, sr = (random(2, 3, height, width, seed=seed, low=-1).float() for seed in (1, 2))
    mu = net(hr, sr, 0.3)
    assert mu.shape == hr.shape and mu.min() >= 0 and mu.max() <= 1
    torch.testing.assert_close(mu.mean(dim=(-2, -1)), torch.full((2, 3), 0.3))
    assert (net.conv[0].in_channels, net.conv[0].out_channels, net.conv[-1].out_channels) == (24, 64, 12)
    # Multiplications per pixel of the image: a third.
    counts = [sum(p.numel() for p in part.parameters() if p.dim() == 4) for part in (WeightingNet(), net)]
    assert counts[1] / 4 == 55_360 and 0.34 < counts[1] / 4 / counts[0] < 0.35


def test_odd_sizes_at_half_resolution_are_padded_by_their_last_row_and_column():
    net = WeightingNet(channels=8, scale=2).double().eval()
    images = random(1, 6, 7, 9, low=-1)
    padded = torch.cat([images, images[..., -1:]], dim=3)
    padded = torch.cat([padded, padded[..., -1:, :]], dim=2)
    torch.testing.assert_close(net.logits(images), net.logits(padded)[..., :7, :9])


def test_the_width_of_the_weighting_network():
    assert [layer.out_channels for layer in WeightingNet(channels=16).conv if isinstance(layer, torch.nn.Conv2d)] == [
        16,
        16,
        16,
        3,
    ]
