"""1 - MS-SSIM against a transcription in float64, torchmetrics' parts, and where it has no derivative."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torchmetrics.functional.image import structural_similarity_index_measure

from metrics import ms_ssim
from metrics.judges import JUDGES
from metrics.ms_ssim import MSSSIM

SHARES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # table of the paper


def pair(count=1, size=(96, 89), seed=0, noise=0.3):
    """A smooth picture and a noisy one, (count,3,H,W) each, within [-1,1]."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=random) * 1.6 - 0.8
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(-1, 1)
    levels = noise * (1 + torch.arange(count).view(-1, 1, 1, 1))
    return (smooth + levels * torch.randn(smooth.shape, generator=random)).clamp(-1, 1), smooth


def shares_of(size):
    """Of the scales that hold an 11x11 window, to the sum of all."""
    scales = min(5, int(math.log2(min(size) / 11)) + 1)
    return [share * sum(SHARES) / sum(SHARES[:scales]) for share in SHARES[:scales]]


def transcribed(a, b):
    """The paper's Eq. (7) on one image (3,H,W), per channel and from 0 to 2, with numpy and scipy: a distance."""
    ramp = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(ramp, ramp) / ramp.sum() ** 2
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    shares, values = shares_of(a.shape[1:]), []
    for x, y in zip(a.double().numpy() + 1, b.double().numpy() + 1):
        value = 1.0
        for scale, share in enumerate(shares):
            mx, my, xx, yy, xy = (convolve2d(z, window, mode="valid") for z in (x, y, x * x, y * y, x * y))
            structure = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
            if scale == len(shares) - 1:
                structure = structure * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
            value *= max(structure.mean(), 1e-4) ** share
            height, width = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
            x, y = (z[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for z in (x, y))
        values.append(value)
    return 1 - np.mean(values)


@pytest.mark.parametrize("size", [(176, 181), (175, 200), (87, 90), (43, 60), (21, 40), (11, 11)])
def test_equals_the_transcription(size):
    a, b = pair(2, size)
    expected = [transcribed(*images) for images in zip(a, b)]
    assert min(expected) > 0.01
    torch.testing.assert_close(MSSSIM()(a, b), torch.tensor(expected).float(), rtol=1e-4, atol=1e-5)


def test_number_of_scales():
    sizes = (11, 21, 22, 43, 44, 87, 88, 175, 176, 999)
    assert [len(shares_of((size, 999))) for size in sizes] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    for size in (11, 22, 44, 88, 176):
        assert sum(shares_of((size, size))) == pytest.approx(sum(SHARES))


def test_equals_torchmetrics_scale_by_scale():
    """Its multiscale function takes the coarsest scale's mean over mirrored borders too, which the window never saw
    wholly (0.0473 for our 0.0463 on one pair of images): here they are left out, as it does on the other scales."""
    a, b = pair(1, (180, 190))
    # One channel at a time: it takes the mean over them before the power.
    x, y = (image.double().flatten(0, 1)[:, None] / 2 + 0.5 for image in (a, b))
    settings = dict(sigma=1.5, data_range=1.0, reduction="none")
    value = torch.ones(3, dtype=torch.float64)
    for scale, share in enumerate(SHARES):
        if scale < 4:
            _, part = structural_similarity_index_measure(x, y, **settings, return_contrast_sensitivity=True)
        else:
            _, whole = structural_similarity_index_measure(x, y, **settings, return_full_image=True)
            part = whole[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
        value *= part.flatten() ** share
        x, y = (torch.nn.functional.avg_pool2d(z, 2) for z in (x, y))
    expected = 1 - value.mean()[None]
    torch.testing.assert_close(MSSSIM()(a, b), expected.float(), rtol=1e-4, atol=1e-5)


def test_gradient_is_the_slope_of_the_transcription():
    """In one direction; MSSSIM computes in float32, so that gradcheck has nothing to say."""
    a, b = pair(1, (46, 50))
    a.requires_grad_()
    (slope,) = torch.autograd.grad(MSSSIM()(a, b).sum(), a)
    for direction in (slope.sign(), torch.randn(a.shape, generator=torch.Generator().manual_seed(1))):
        direction, x = direction[0].double(), a[0].detach().double()
        expected = (transcribed(x + 1e-5 * direction, b[0]) - transcribed(x - 1e-5 * direction, b[0])) / 2e-5
        assert (slope[0].double() * direction).sum().item() == pytest.approx(expected, rel=2e-3)


def test_grows_with_the_noise_and_is_symmetric():
    a, b = pair(4, noise=0.1)
    distance = MSSSIM()(a, b)
    assert (distance.diff() > 0).all() and 0 < distance[0] < distance[-1] < 1
    torch.testing.assert_close(MSSSIM()(b, a), distance)


def pictures():
    random, _ = pair(1, (50, 61))
    even = [torch.full_like(random, value) for value in (-1.0, 0.0, 0.4, 1.0)]
    return [random, random.sign(), *even]


@pytest.mark.parametrize("reference", pictures())
def test_identical_constant_and_black_images(reference):
    a = torch.stack(pictures()).requires_grad_()
    distance = MSSSIM().with_reference(reference)(a)
    distance.sum().backward()
    assert distance.isfinite().all() and (distance >= 0).all() and a.grad.isfinite().all()
    same = [torch.equal(picture, reference) for picture in pictures()]
    assert (distance.flatten()[same] == 0).all() and (distance.flatten()[[not s for s in same]] > 1e-3).all()


def test_luminance_counts_from_black_on():
    """The formula wants values >= 0: grey on either side of 0 would be as far apart as can be."""
    dark, light = (torch.full((1, 3, 64, 64), value) for value in (-0.05, 0.05))
    assert 0 < MSSSIM()(dark, light).item() < 0.01 < MSSSIM()(dark, torch.ones(1, 3, 64, 64)).item()
    for a, b in ((0.0, 0.02), (0.0, 2.0), (0.5, 0.9)):  # 0 is black; of even images luminance alone differs
        expected = 1 - ((2 * a * b + 0.0004) / (a**2 + b**2 + 0.0004)) ** shares_of((64, 64))[-1]
        found = MSSSIM()(*(torch.full((1, 3, 64, 64), value - 1) for value in (a, b)))
        assert found.item() == pytest.approx(expected, rel=1e-3)


def test_negative_structure():
    """Its power is no number; the least similarity stands in, whatever the scale."""
    for size in ((96, 89), (11, 11)):
        _, b = pair(2, size)
        b = (b + 0.2 * torch.randn(b.shape, generator=torch.Generator().manual_seed(2))).clamp(-1, 1)
        a = (-b).requires_grad_()
        distance = MSSSIM()(a, b)
        distance.sum().backward()
        assert (distance > 0.99).all() and (distance <= 1).all() and a.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    a, b = pair(2, (50, 61), noise=0.02)
    results = []
    for enabled in (False, True):
        x = a.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=enabled):
            distance = MSSSIM()(x, b)
        assert distance.dtype == torch.float32
        results.append((distance.detach(), torch.autograd.grad(distance.sum(), x)[0]))
    assert all(torch.equal(*both) for both in zip(*results))


def test_leading_dimensions():
    _, reference = pair(2, (33, 40), seed=1)
    noise = torch.randn(6, *reference.shape, generator=torch.Generator().manual_seed(3))
    mixtures = (reference + torch.linspace(0.1, 0.6, 6).view(-1, 1, 1, 1, 1) * noise).unflatten(0, (2, 3))
    together = MSSSIM().with_reference(reference)(mixtures)
    assert together.shape == (2, 3, 2)
    for s in range(2):
        for t in range(3):
            for b in range(2):
                single = MSSSIM()(mixtures[s, t, b : b + 1], reference[b : b + 1])
                torch.testing.assert_close(together[s, t, b : b + 1], single, rtol=1e-5, atol=1e-6)


def holding(count, size):
    """The judge whose memory holds count images, and not one more; and the list of how many are compared at a time."""
    judge, sizes = MSSSIM(memory=count * ms_ssim._PIXEL_BYTES * size[0] * size[1] + 5), []
    compare = judge.compare
    judge.compare = lambda images, reference: sizes.append(len(images)) or compare(images, reference)
    return judge, sizes


@pytest.mark.parametrize("gradient", [False, True], ids=["no-gradient", "gradient"])
@pytest.mark.parametrize("at_once", [1, 3, 5])
@pytest.mark.parametrize("batch", [1, 4])
def test_chunks_change_nothing(batch, at_once, gradient):
    """But what it takes of memory."""
    size = (46, 50)
    _, reference = pair(batch, size, seed=1)
    noise = torch.randn(2, 3, *reference.shape, generator=torch.Generator().manual_seed(3))
    mixtures = (reference + torch.linspace(0.1, 0.6, 6).view(2, 3, 1, 1, 1, 1) * noise).clamp(-1, 1)
    weigh = torch.arange(1.0, 6 * batch + 1).view(2, 3, batch)  # every distance has its own part in the gradient
    judge, sizes = holding(at_once, size)
    results = []
    for one in (MSSSIM(), judge):
        x = mixtures.clone().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            distance = one.with_reference(reference)(x)
        assert distance.shape == (2, 3, batch) and distance.requires_grad == gradient
        results.append((distance.detach(), torch.autograd.grad((weigh * distance).sum(), x)[0] if gradient else None))
    (whole, whole_slope), (parts, parts_slope) = results
    assert max(sizes) <= at_once and sum(sizes) == 6 * batch
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    if gradient:
        assert whole_slope.flatten(3).any(dim=-1).all()
        assert (parts_slope - whole_slope).abs().max() <= 1e-5 * whole_slope.abs().max()


def test_less_memory_than_one_image_takes_is_one_image():
    judge, sizes = holding(0, (33, 40))
    assert judge(*pair(2, (33, 40))).isfinite().all() and sizes == [1, 1]


def test_the_judges_of_a_run_are_given_the_memory():
    for judge in JUDGES["ms-ssim"](memory=1 << 20), JUDGES["tiny"](memory=1 << 20):
        assert all(0 < pixels < 1 << 20 for pixels in judge.chunk_pixels)


def test_gradient_goes_to_the_images_only():
    a, b = (image.requires_grad_() for image in pair(1, (33, 40)))
    judge = MSSSIM()
    judge(a, b).sum().backward()
    assert a.grad.any() and b.grad is None and list(judge.parameters()) == []
