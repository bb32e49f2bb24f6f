"""TLW's controls and savings: each against plain autograd written out, and what each has to keep."""

import math

import pytest
import torch

import losses.tlw
from losses import TLW, Target, Term, WeightedSum
from losses.tlw import inverted, shuffled
from losses.weighting import fixed_sum, relaxed_bernoulli

EPS, SAMPLES, EPOCH = 1e-3, 3, 40
K = 0.3 + 0.6 * (1 - math.exp(-EPOCH / 200))


def random(*shape, seed=0, low=-1.0) -> torch.Tensor:
    return low + (1 - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixel_judge(a, b):
    """The simplest judge: mean squared difference per image."""
    return (a - b).square().mean(dim=(-3, -2, -1))


def example(b=2, h=6, w=8):
    """sr, which has a gradient, and the target."""
    sr, hr = random(b, 3, h, w, seed=1).requires_grad_(), random(b, 3, h, w, seed=2)
    return sr, Target.judged_by(pixel_judge, hr)


def build(pixel="L1", **settings) -> TLW:
    torch.manual_seed(0)
    return TLW(pixel, weighting_channels=8, **settings).double()


class Counting:
    """A judge of ours: counts how often a reference is prepared and images are compared to it."""

    def __init__(self):
        self.prepared, self.asked, self.with_gradient = 0, 0, None

    def with_reference(self, hr):
        self.prepared, self.with_gradient = self.prepared + 1, torch.is_grad_enabled()

        def distance(images):
            self.asked += 1
            return pixel_judge(images, hr)

        return distance


# --- the M-step written out -------------------------------------------------------------------------------------------


def written_out_map(weights: str, mu: torch.Tensor) -> torch.Tensor:
    """The M-step's mu, image by image and channel by channel, its random numbers in the order of the code."""
    if weights == "learned":
        return mu
    moved = torch.empty_like(mu)
    order = torch.rand(len(mu), mu[0, 0].numel()) if weights == "shuffled" else None
    for b in range(len(mu)):
        for c in range(3):
            if weights == "shuffled":
                places = sorted(range(mu[0, 0].numel()), key=lambda i: order[b, i].item())
                moved[b, c] = torch.stack([mu[b, c].flatten()[i] for i in places]).view_as(mu[b, c])
            else:
                p = 1 - mu[b, c]
                mean = p.mean()
                moved[b, c] = p * K / mean if mean > K else p + (K - mean) / (1 - mean) * (1 - p)
    return moved


def written_out(pixel, weights, wc, mu, sr, hr):
    """Eq. (13) with all that the settings change in it, sample by sample and image by image."""
    with torch.no_grad():
        if weights == "uniform":
            samples = [torch.full_like(hr, K)] * SAMPLES
        else:
            mu = written_out_map(weights, mu)
            samples = [relaxed_bernoulli(mu, uniform) for uniform in torch.rand(SAMPLES, *mu.shape)]
        criteria = torch.empty(SAMPLES, len(hr), dtype=hr.dtype)
        for i, w in enumerate(samples):
            near = pixel_judge((1 - w) * sr + w * hr, hr)
            far = pixel_judge(w * sr + (1 - w) * hr, hr)
            criteria[i] = 1 if wc == "one" else (far + EPS) / (near + EPS)
        if wc == "normalised":
            criteria = criteria / (criteria.sum() / criteria.numel())
    total = 0
    for i, w in enumerate(samples):
        for b in range(len(hr)):
            gap = (sr[b] - hr[b]).abs()
            error = w[b] * gap if pixel == "L1" else w[b] / (gap.detach() + 0.1) * gap**2
            total = total + criteria[i, b] * error.mean() / len(hr)
    return total


@pytest.mark.parametrize("pixel", ["L1", "MSE"])
@pytest.mark.parametrize("wc", ["sum", "normalised", "one"])
@pytest.mark.parametrize("weights", ["learned", "uniform", "shuffled", "inverted"])
def test_m_step_written_out(pixel, weights, wc):
    sr, target = example()
    loss = build(pixel, weights=weights, wc=wc)
    with torch.no_grad():
        mu = None if loss.helper is None else loss.helper(target.hr, sr, K)
    torch.manual_seed(5)
    ours = loss(sr, target, EPOCH)
    torch.manual_seed(5)
    expected = written_out(pixel, weights, wc, mu, sr, target.hr)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, sr)[0] for x in (ours, expected)))


@pytest.mark.parametrize("weights", ["learned", "shuffled", "inverted"])
@pytest.mark.parametrize("scale", [1, 2])
def test_e_step_written_out(weights, scale):
    """The controls learn the paper's map, whatever the M-step makes of it."""
    sr, target = example()
    loss = build(weights=weights, weighting_scale=scale, wc="normalised")
    torch.manual_seed(5)
    ours = loss.helper_loss(sr, target, EPOCH)
    torch.manual_seed(5)
    hr, given = target.hr, sr.detach()
    images = torch.cat([hr, given], dim=1)
    if scale == 2:  # of the smaller images channel 4c + 2i + j is every second pixel of c from (i, j) on
        images = torch.stack([images[:, c, i::2, j::2] for c in range(6) for i in (0, 1) for j in (0, 1)], dim=1)
    small = loss.helper.conv(images)
    logits = torch.zeros_like(hr)
    for c in range(3):
        for i in range(scale):
            for j in range(scale):
                logits[:, c, i::scale, j::scale] = small[:, scale**2 * c + scale * i + j]
    mu = fixed_sum(torch.sigmoid(logits), K)
    w = relaxed_bernoulli(mu, torch.rand(mu.shape))
    near, far = (pixel_judge(x, hr) + EPS for x in ((1 - w) * given + w * hr, w * given + (1 - w) * hr))
    expected = -(far / near).log().mean()
    torch.testing.assert_close(ours, expected)
    parameters = list(loss.helper.parameters())
    torch.testing.assert_close(*(torch.autograd.grad(x, parameters) for x in (ours, expected)))


# --- what the controls keep -------------------------------------------------------------------------------------------


def test_uniform_weights_are_k_and_learn_nothing():
    sr, target = example()
    loss = build(weights="uniform")
    assert loss.draw(sr, target.hr, K).expand(SAMPLES, *sr.shape).eq(K).all()
    assert loss.helper is None and loss.weighting is None and loss.helper_loss(sr, target, EPOCH) is None
    state = torch.get_rng_state()
    loss(sr, target, EPOCH)
    assert torch.equal(torch.get_rng_state(), state)  # no noise
    assert not list(loss.parameters()) and set(loss.log_scalars(None, 0)) == {"k"}


def test_uniform_weights_without_wc_are_the_plain_loss():
    sr, target = example()
    ours = build(weights="uniform", wc="one")(sr, target, EPOCH)
    torch.testing.assert_close(ours, SAMPLES * K * (sr - target.hr).abs().mean())


def test_uniform_weights_in_the_released_m_step_are_the_plain_loss():
    sr, target = example()  # its WC is relative to the image's other samples, which are the same here
    ours = build(weights="uniform", m_step="released")(sr, target, EPOCH)
    torch.testing.assert_close(ours, K * (sr - target.hr).abs().mean())


def test_shuffled_has_the_same_values_in_other_places():
    mu = random(2, 3, 6, 8, low=0.0)
    mu[:, 1] = 10 + mu[:, 0]
    torch.manual_seed(1)
    moved, again = shuffled(mu, 0.3), shuffled(mu, 0.3)
    assert torch.equal(moved.flatten(2).sort().values, mu.flatten(2).sort().values)
    assert (moved != mu).double().mean() > 0.9 and not torch.equal(moved, again)  # another order in each step
    assert torch.equal(moved[:, 1], 10 + moved[:, 0])  # one order for all channels
    ranks = [[x[0].flatten().argsort() for x in both] for both in zip(mu, moved)]
    assert not torch.equal(*(new[old.argsort()] for old, new in ranks))  # and another for each image


@pytest.mark.parametrize("k", [0.2, 0.7])
def test_inverted_has_the_mean_k_and_the_opposite_order(k):
    mu = fixed_sum(random(2, 3, 6, 8, low=0.0), k)
    moved = inverted(mu, k)
    torch.testing.assert_close(moved.mean(dim=(-2, -1)), torch.full((2, 3), k, dtype=mu.dtype))
    assert 0 <= moved.min() and moved.max() <= 1
    assert torch.equal(moved.flatten(2).argsort(), mu.flatten(2).argsort(descending=True))


def test_wc_and_its_forms():
    sr, target = example()
    w = random(SAMPLES, *sr.shape, seed=3, low=0.0)
    plain, normalised, one = (build(wc=wc).criterion(w, sr, target).detach() for wc in ("sum", "normalised", "one"))
    assert plain.shape == (SAMPLES, len(sr)) and plain.unique().numel() == plain.numel()
    torch.testing.assert_close(normalised.mean(), torch.ones((), dtype=sr.dtype))
    torch.testing.assert_close(normalised / normalised[0, 0], plain / plain[0, 0])
    assert torch.equal(one, torch.ones_like(plain))


# --- what the savings save --------------------------------------------------------------------------------------------


def test_the_judge_is_asked_where_it_has_to_be_and_prepared_once():
    sr, hr = random(2, 3, 6, 8, seed=1), random(2, 3, 6, 8, seed=2)
    for settings, asked in (({"wc": "one"}, 0), ({}, 1), ({"weights": "uniform"}, 1)):
        judge = Counting()
        target = Target.judged_by(judge, hr)
        for step in range(3):
            loss = build(e_every=4, **settings)
            loss.begin_step(step)
            assert loss.helper_loss(sr, target, EPOCH) is None and loss.helper_parameters(EPOCH) == []
            loss(sr, target, EPOCH)
        assert (judge.asked, judge.prepared) == (3 * asked, asked)
        assert judge.with_gradient in (None, True)  # first asked without one, and yet made for one


def test_extractors_are_prepared_when_they_are_asked():
    extractor = Counting()
    target = Target.judged_by(None, random(2, 3, 6, 8), extractors={"x": extractor})
    assert extractor.prepared == 0
    for _ in range(2):
        target.features["x"](random(2, 3, 6, 8, seed=1))
    assert (extractor.prepared, extractor.asked) == (1, 2)


def test_e_step_in_every_fourth_step():
    sr, target = example()
    for loss in (build(e_every=4), WeightedSum(Term(build(e_every=4), 0.5))):
        due = []
        for step in range(9):
            loss.begin_step(step)
            due.append(loss.helper_loss(sr, target, EPOCH) is not None)
            assert bool(loss.helper_parameters(EPOCH)) == due[-1]
        assert due == [False, False, False, True, False, False, False, True, False]
    assert build(e_every=4).helper_loss(sr, target, EPOCH) is not None  # for who calls no begin_step, always


@pytest.mark.parametrize("reuse, passes", [(True, [1, 1, 1, 1]), (False, [1, 2, 1, 2])])
def test_the_e_steps_mu_serves_the_m_step(reuse, passes, monkeypatch):
    sr, target = example()
    loss = build(e_every=2, reuse_mu=reuse)
    mus, counted = [], []
    sample = losses.tlw.relaxed_bernoulli
    monkeypatch.setattr(losses.tlw, "relaxed_bernoulli", lambda mu, u: mus.append(mu.detach().clone()) or sample(mu, u))
    loss.helper.register_forward_hook(lambda *_: counted.append(1))
    optimizer = torch.optim.SGD(loss.helper.parameters(), lr=0.1)
    for step in range(4):
        mus.clear(), counted.clear()
        loss.begin_step(step)
        helper_loss = loss.helper_loss(sr, target, EPOCH)
        if helper_loss is not None:
            optimizer.zero_grad()
            helper_loss.backward()
            optimizer.step()
        loss(sr, target, EPOCH).backward()
        assert len(counted) == passes[step]
        if helper_loss is not None:
            assert torch.equal(*mus) == reuse  # else that of the updated network


def test_a_mu_serves_once():
    sr, target = example()
    loss, counted = build(reuse_mu=True), []
    loss.helper.register_forward_hook(lambda *_: counted.append(1))
    loss.helper_loss(sr, target, EPOCH)
    for count in (1, 2, 3):
        loss(sr, target, EPOCH)
        assert len(counted) == count
