"""The two bicubic upscalers: published PSNR and SSIM, torch's own, and the properties of cubic convolution."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data import imresize, list_images, read_rgb
from metrics.evaluate import evaluate
from metrics.fidelity import luma, psnr_y, ssim_y
from models.bicubic import Bicubic, MatlabBicubic, keys_kernel
from training.validation import read_validation_set

DATASETS = Path(__file__).parents[3] / "shared" / "datasets"
needs_datasets = pytest.mark.skipif(not DATASETS.is_dir(), reason="the data sets are not beside the repository")
SCALES = (2, 3, 4)
UPSCALERS = pytest.mark.parametrize("upscaler", [Bicubic, MatlabBicubic])


def grey(y: np.ndarray) -> torch.Tensor:
    """A map whose luma is y, (H,W) -> (1,3,H,W)."""
    return torch.from_numpy((y - 16) / 219 * 2 - 1).expand(1, 3, *y.shape)


@lru_cache
def field_scores(dataset: str, scale: int) -> tuple[float, float]:
    """Mean PSNR and SSIM as the field's tables were made in MATLAB: on 8-bit Y alone, LR not rounded.

    A greyscale file's values count as Y as they are, without the studio swing of 16 to 235.
    """
    scores = []
    for path in list_images(DATASETS / dataset):
        rgb = read_rgb(path)
        height, width = (n // scale * scale for n in rgb.shape[:2])
        rgb = rgb[:height, :width]
        if Image.open(path).mode == "L":
            y = rgb[..., 0].astype(np.float64)
        else:
            y = luma(torch.from_numpy(rgb / 127.5 - 1).permute(2, 0, 1)[None])[0, 0].round().numpy()
        sr = MatlabBicubic(scale)(torch.from_numpy(imresize(y, scale))[None, None])[0, 0].round().clamp(0, 255).numpy()
        scores.append([metric(grey(sr), grey(y), shave=scale).item() for metric in (psnr_y, ssim_y)])
    return tuple(np.mean(scores, axis=0))


@needs_datasets
@pytest.mark.parametrize(
    "dataset, scale, psnr, ssim",
    [
        ("Set5", 2, 33.66, 0.9299),
        ("Set5", 3, 30.39, 0.8682),
        ("Set5", 4, 28.42, 0.8104),
        ("Set14", 2, 30.23, 0.8687),
        ("Set14", 3, 27.54, 0.7736),
        ("Set14", 4, 26.00, 0.7019),
    ],
)
def test_published_values(dataset, scale, psnr, ssim):
    """Other tables print up to 0.01 dB and 0.0008 more on Set14."""
    ours = field_scores(dataset, scale)
    assert ours[0] == pytest.approx(psnr, abs=0.005)
    assert ours[1] == pytest.approx(ssim, abs=0.0001)


@needs_datasets
@pytest.mark.parametrize("scale, psnr, ssim", [(2, 33.6818, 0.93052), (3, 30.4047, 0.86897), (4, 28.4314, 0.81127)])
def test_standard_protocol_on_set5(scale, psnr, ssim):
    """0.01 to 0.02 dB above the published values: SR is rounded to 8 bits in RGB, its luma not once more."""
    pairs = read_validation_set([DATASETS / "Set5"], scale, "standard")
    scores = evaluate(MatlabBicubic(scale), pairs, {}, "standard")
    assert np.mean(scores["PSNR-Y"]) == pytest.approx(psnr, abs=0.001)
    assert np.mean(scores["SSIM-Y"]) == pytest.approx(ssim, abs=0.0001)


@pytest.mark.parametrize("scale", SCALES)
def test_bicubic_is_torchs(scale):
    lr = torch.rand(2, 3, 7, 5)
    expected = F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)
    assert torch.equal(Bicubic(scale)(lr), expected)


def direct_imresize(row: np.ndarray, scale: int) -> np.ndarray:
    """One row upscaled tap by tap, borders mirrored."""
    mirrored = np.concatenate([row, row[::-1]])
    out = []
    for i in range(len(row) * scale):
        u = (i + 0.5) / scale - 0.5
        taps = range(int(np.floor(u)) - 1, int(np.floor(u)) + 3)
        out.append(sum(mirrored[j % len(mirrored)] * keys_kernel(torch.tensor(u - j), -0.5).item() for j in taps))
    return np.array(out)


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize("scale", SCALES)
def test_matlab_bicubic_is_cubic_convolution(scale, length):
    image = np.random.RandomState(0).rand(length, 6)
    rows = np.stack([direct_imresize(row, scale) for row in image])
    expected = np.stack([direct_imresize(column, scale) for column in rows.T]).T
    ours = MatlabBicubic(scale)(torch.from_numpy(image)[None, None])[0, 0]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


def test_keys_kernel():
    """Interpolating (1 at 0, 0 at the other whole numbers), 0 outside [-2,2], continuous, -1/16 at 1.5 for a = -0.5."""
    x = torch.tensor([0, 1, -1, 2, -2, 3, 0.5, 1.5], dtype=torch.float64)
    values = keys_kernel(x, -0.5)
    torch.testing.assert_close(values, torch.tensor([1, 0, 0, 0, 0, 0, 0.5625, -0.0625], dtype=torch.float64))
    torch.testing.assert_close(keys_kernel(torch.tensor([0.5, 1.5]), -0.75), torch.tensor([0.59375, -0.09375]))


@UPSCALERS
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (8, 9)])
def test_constants_stay(upscaler, scale, size):
    sr = upscaler(scale)(torch.full((2, 3, *size), 0.7))
    torch.testing.assert_close(sr, torch.full((2, 3, size[0] * scale, size[1] * scale), 0.7))


@UPSCALERS
@pytest.mark.parametrize("scale", SCALES)
def test_ramps_stay_inside(upscaler, scale):
    """Both kernels keep the mean position of their taps; a = -0.75 keeps it only up to its ripple."""
    h, w = 9, 10
    y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    sr = upscaler(scale)((2 * y - 3 * x).expand(1, 3, h, w))
    v, u = ((torch.arange(n * scale).double() + 0.5) / scale - 0.5 for n in (h, w))
    inside = (..., slice(2 * scale, -2 * scale), slice(2 * scale, -2 * scale))
    ramp = (2 * v[:, None] - 3 * u).expand(1, 3, -1, -1)
    tolerance = 1e-10 if upscaler is MatlabBicubic else 0.25
    torch.testing.assert_close(sr[inside], ramp[inside], rtol=0, atol=tolerance)


@UPSCALERS
def test_flips_and_turns_commute(upscaler):
    lr = torch.rand(1, 3, 6, 8, dtype=torch.float64)
    up = upscaler(3)
    for change in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT):
        torch.testing.assert_close(up(change(lr)), change(up(lr)))


@UPSCALERS
def test_images_and_channels_do_not_mix(upscaler):
    lr = torch.rand(2, 3, 5, 4)
    sr = upscaler(2)(lr)
    for b in range(2):
        for c in range(3):
            alone = upscaler(2)(lr[b : b + 1, c : c + 1].expand(1, 3, -1, -1))
            torch.testing.assert_close(sr[b, c], alone[0, 0])


@UPSCALERS
def test_nothing_to_save_or_train(upscaler):
    assert not upscaler(2).state_dict() and not list(upscaler(2).parameters())
