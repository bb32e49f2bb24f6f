"""PSNR and SSIM against scikit-image and torchmetrics."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from metrics.fidelity import luma, psnr_y, quantize, ssim_y


@pytest.fixture(scope="module")
def images():
    random = torch.Generator().manual_seed(0)
    smooth = torch.rand(3, 3, 9, 12, generator=random) * 2 - 1
    hr = torch.nn.functional.interpolate(smooth, (45, 61), mode="bilinear")
    noise = torch.randn(hr.shape, generator=random) * torch.tensor([0.02, 0.1, 0.4])[:, None, None, None]
    return hr + noise, hr


def reference_luma(x: torch.Tensor) -> np.ndarray:
    return rgb2ycbcr((x.double().permute(0, 2, 3, 1).numpy() + 1) / 2)[..., 0]


def test_luma(images):
    assert np.abs(luma(images[1])[:, 0].numpy() - reference_luma(images[1])).max() < 1e-10
    ends = luma(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten()
    assert torch.allclose(ends, torch.tensor([16.0, 235.0], dtype=torch.float64))


@pytest.mark.parametrize("shave", [0, 4])
def test_psnr_and_ssim_against_scikit_image(images, shave):
    psnr, ssim = psnr_y(*images, shave), ssim_y(*images, shave)
    assert psnr.shape == ssim.shape == (3,) and psnr.dtype == ssim.dtype == torch.float64
    for i, (sr, hr) in enumerate(zip(*(reference_luma(x) for x in images))):
        if shave:
            sr, hr = sr[shave:-shave, shave:-shave], hr[shave:-shave, shave:-shave]
        assert psnr[i].item() == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-9)
        settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
        assert ssim[i].item() == pytest.approx(structural_similarity(hr, sr, **settings), abs=1e-10)


def test_ssim_against_torchmetrics(images):
    sr, hr = (luma(x) for x in images)
    settings = dict(sigma=1.5, data_range=255.0, reduction="none", return_full_image=True)
    _, similarity = structural_similarity_index_measure(sr, hr, **settings)
    # It pads the images by mirroring: what the window sees wholly lies 5 pixels inside.
    expected = similarity[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert torch.allclose(ssim_y(*images), expected, atol=1e-10)


def test_equal_images_and_batches(images):
    sr, hr = images
    assert torch.isinf(psnr_y(hr, hr)).all()
    assert torch.allclose(ssim_y(hr, hr), torch.ones(3, dtype=torch.float64))
    single = torch.cat([ssim_y(sr[i : i + 1], hr[i : i + 1]) for i in range(3)])
    assert torch.allclose(single, ssim_y(sr, hr), atol=1e-14)
    assert ssim_y(sr[..., :11, :11], hr[..., :11, :11]).shape == (3,)


def test_ssim_is_never_above_1():
    """A flat image that was met to rounding: 1.00000000000025, were it not bounded."""
    hr = torch.full((1, 3, 48, 72), 253 / 127.5 - 1)
    assert ssim_y(hr + 1e-7, hr).item() == 1


def test_quantize():
    levels = torch.from_numpy((np.arange(256) / 255 * 2 - 1).astype(np.float32))
    assert torch.equal(quantize(levels), levels)
    assert torch.equal(quantize(levels + 0.4 / 127.5), levels)
    assert quantize(torch.tensor([-1.5, 1.5])).tolist() == [-1, 1]
    assert quantize(levels).dtype == torch.float32


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_neither_clamps_nor_rounds(images, metric):
    sr, hr = images
    assert not torch.equal(metric(sr * 1.5, hr), metric((sr * 1.5).clamp(-1, 1), hr))
    assert not torch.equal(metric(sr, hr), metric(quantize(sr), hr))


@pytest.mark.parametrize(
    "metric, size, shave, words",
    [
        (ssim_y, (10, 40), 0, "image size 10x40 with shave=0 is too small; expected at least 11"),
        (ssim_y, (18, 40), 4, "expected at least 19"),
        (psnr_y, (8, 40), 4, "expected at least 9"),
        (psnr_y, (8, 40), -1, "shave=-1 is negative"),
    ],
)
def test_errors(metric, size, shave, words):
    image = torch.zeros(1, 3, *size)
    with pytest.raises(ValueError, match=words) as caught:
        metric(image, image, shave)
    assert "\n" not in str(caught.value)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="do not match"):
        psnr_y(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match="do not match"):
        ssim_y(torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))
