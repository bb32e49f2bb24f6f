"""WC and the gradient of -log WC are finite and WC above 0, for any images in range, any weights and any judge."""

import math
from functools import cache

import pytest
import torch

from losses import TLW, Target, weight_criterion
from losses.tlw import MAX_DISTANCE, MIN_DISTANCE
from losses.weighting import relaxed_bernoulli
from metrics.judges import JUDGES

SIZE = 32
EPSILONS = [(1e-3, None), (1e-3, MIN_DISTANCE), (1e-300, None), (1e300, 1e-300)]  # eps, far_eps


def noise(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


HR = noise(0, 1, 3, SIZE, SIZE)
DOT = torch.zeros_like(HR)
DOT[..., 7, 5] = 1e-3
IMAGES = {  # hr, sr
    "random": (HR, noise(1, *HR.shape)),
    "identical": (HR, HR),
    "constant": (torch.full_like(HR, 0.3), torch.full_like(HR, -0.8)),
    "both constant": (torch.full_like(HR, -1.0), torch.full_like(HR, -1.0)),
    "extreme": (HR.sign(), -HR.sign()),
    "black and white": (torch.full_like(HR, -1.0), torch.full_like(HR, 1.0)),
    "one pixel": (HR, (HR + DOT).clamp(-1, 1)),
    "one pixel on black": (DOT - 1, torch.full_like(HR, -1.0)),
    "almost": (HR, (HR + 1e-7).clamp(-1, 1)),
}


def mean_error(a, b):
    return (a - b).abs().mean(dim=(-3, -2, -1))


CUSTOM = {
    "negative": lambda a, b: -mean_error(a, b),
    "of both signs": lambda a, b: (a - b).mean(dim=(-3, -2, -1)),
    "zero": lambda a, b: 0 * mean_error(a, b),
    "huge": lambda a, b: 1e38 * mean_error(a, b),
    "tiny": lambda a, b: 1e-38 * mean_error(a, b),
    "half": lambda a, b: mean_error(a, b).half(),
    "bf16": lambda a, b: 1e30 * mean_error(a, b).bfloat16(),
    "steep": lambda a, b: mean_error(a, b).clamp(min=1e-30).sqrt(),
}


@cache
def judge_of(name: str, files: tuple[str, ...]):
    return CUSTOM[name] if name in CUSTOM else JUDGES[name](weights=files).to(torch.get_default_device())


OURS = ["tiny", "ms-ssim", "lpips-alex", "lpips-squeeze", "lpips-alex-unweighted", "lpips-squeeze-unweighted"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*OURS, *CUSTOM])
@pytest.mark.filterwarnings("ignore:.*without a value below 0")
def test_wc_and_its_gradient_are_finite(name, precision, alex_file, squeeze_file):
    """w straight, and drawn from mu, whose extremes the sampler moves off 0 and 1."""
    judge = judge_of(name, (str(alex_file), str(squeeze_file)))
    for number, (label, images) in enumerate(IMAGES.items()):
        hr, sr = (x.to(torch.get_default_device()) for x in images)
        uniform = noise(10 + number, *hr.shape) / 2 + 0.5
        values = torch.stack([torch.zeros_like(hr), torch.ones_like(hr), uniform])
        for eps, far_eps in EPSILONS if name in CUSTOM and name != "half" else EPSILONS[:1]:  # half has no 1e8
            leaf = values.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                target = Target.judged_by(judge, hr)
                w = torch.cat([leaf, relaxed_bernoulli(leaf, uniform.flip(-1))])
                wc = weight_criterion(w, sr, target, eps, far_eps)
            assert wc.shape == (6, 1) and wc.dtype == torch.float32
            assert wc.isfinite().all() and (wc > 0).all(), (label, eps, wc)
            assert MIN_DISTANCE / MAX_DISTANCE * 0.99 <= wc.min() <= wc.max() <= MAX_DISTANCE / MIN_DISTANCE * 1.01
            (-wc.log().sum()).backward()
            assert leaf.grad.isfinite().all(), (label, eps)


@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("m_step", ["paper", "released"])
def test_a_judge_that_returns_no_number_makes_a_loss_that_is_none(what, m_step):
    """In either mixture of either image, so that the step is skipped; and never a WC of 0."""
    hr, sr = (torch.cat([x, x.flip(-1)]).to(torch.get_default_device()) for x in IMAGES["random"])
    tlw = TLW(m_step=m_step)
    for place in range(4):
        spoil = torch.zeros(4, dtype=torch.bool)
        spoil[place] = True

        def judge(a, b):
            wrong = spoil if len(a) == 4 else spoil.view(2, 1, 2).expand(2, tlw.samples, 2).flatten()
            return torch.where(wrong, what, mean_error(a, b))

        target = Target.judged_by(judge, hr)
        wc = weight_criterion(torch.full_like(hr, 0.5), sr, target)
        assert wc.isnan().tolist() == [place % 2 == 0, place % 2 == 1]
        assert tlw.helper_loss(sr, target, 0).isnan()
        assert tlw(sr, target, 0).isnan()
