"""Blur, noise and JPEG: a function of the seed and the patch alone, near to bicubic and worse."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader

from data import DEGRADATIONS, PairedDataset, PatchDataset, ResumableBatchSampler, degradations, imresize
from data.degradations import blur_noise_jpeg
from data.images import read_rgb
from data.photographs import photographs


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return read_rgb(photographs("skimage:coffee")[0])[:240, :360]


@pytest.fixture
def folder(tmp_path, photograph):
    for number in range(3):
        Image.fromarray(photograph[: 96 + 12 * number, 60 * number :]).save(tmp_path / f"{number}.png")
    return tmp_path


def of_strength(monkeypatch, blur: float, noise: float, quality: int) -> None:
    monkeypatch.setattr(degradations, "BLUR", (blur, blur))
    monkeypatch.setattr(degradations, "NOISE", (noise, noise))
    monkeypatch.setattr(degradations, "QUALITY", (quality, quality))


def degraded(hr, start=(0, 0), size=None, scale=4, seed=0) -> np.ndarray:
    return blur_noise_jpeg(hr, start, size or hr.shape[:2], scale, np.random.default_rng(seed))


def test_without_blur_noise_and_losses_it_is_bicubic(photograph, monkeypatch):
    of_strength(monkeypatch, 1e-3, 0, 100)
    smooth = gaussian_filter(photograph.astype(float), (6, 6, 0)).astype(np.uint8)
    for scale in (2, 3, 4):
        hr = smooth[: 120 // scale * scale, : 120 // scale * scale]
        expected = np.rint(imresize(hr, scale))
        assert np.abs(degraded(hr, scale=scale) - expected).mean() < 1.5  # JPEG's subsampled colours


def test_a_part_is_the_part_of_the_whole(photograph, monkeypatch):
    """Blur and downscaling see beyond the part; JPEG's blocks are its own, so that they are as good as left out."""
    of_strength(monkeypatch, 2.5, 0, 100)
    grey = photograph[..., :1].repeat(3, axis=2)
    whole = degraded(grey)
    for top, left in ((0, 0), (32, 64), (240 - 96, 360 - 96), (4, 240)):
        part = degraded(grey, (top, left), (96, 96))
        apart = np.abs(part.astype(int) - whole[top // 4 : top // 4 + 24, left // 4 : left // 4 + 24])
        assert part.shape == (24, 24, 3) and apart.max() <= 3
    shifted = degraded(grey, (36, 64), (96, 96)).astype(int)
    assert np.abs(shifted - whole[8 : 8 + 24, 16 : 16 + 24]).max() > 10  # it could fail


def test_blur_is_scipys_gaussian(photograph, monkeypatch):
    of_strength(monkeypatch, 1.7, 0, 100)
    grey = photograph[..., :1].repeat(3, axis=2)
    blurred = gaussian_filter(grey[..., 0].astype(float), 1.7, mode="reflect")
    assert np.abs(degraded(grey, scale=2)[..., 0] - np.rint(imresize(blurred, 2)).clip(0, 255)).max() <= 2


def test_noise_has_its_strength(monkeypatch):
    of_strength(monkeypatch, 1.0, 12.0, 100)
    flat = np.full((480, 480, 3), 128, np.uint8)
    found = {degraded(flat, scale=2, seed=seed).std().round(-1).item() for seed in range(6)}
    assert found == {10.0}
    monkeypatch.setattr(degradations, "GREY_NOISE", 1.0)
    same = degraded(flat, scale=2).astype(int)
    assert np.abs(same[..., 0] - same[..., 1]).max() <= 3 and same.std() > 10


def test_low_quality_is_worse(photograph, monkeypatch):
    errors = []
    for quality in (20, 50, 90):
        of_strength(monkeypatch, 0.5, 0, quality)
        errors.append(np.abs(degraded(photograph) - imresize(photograph, 4)).mean())
    assert errors[0] > errors[1] > errors[2]


def test_strengths_differ_from_draw_to_draw(folder):
    pairs = PairedDataset(folder, 4, 4, degradation=blur_noise_jpeg)
    patches = PatchDataset(pairs, 48, augment=False, seed=4)
    plain = PatchDataset(PairedDataset(folder, 4, 4), 48, augment=False, seed=4)
    apart = []
    for index in range(12):
        (lr, hr), (bicubic, same) = patches[0, index], plain[0, index]
        assert torch.equal(hr, same) and lr.shape == bicubic.shape and lr.abs().max() <= 1
        apart.append((lr - bicubic).abs().mean().item())
    assert min(apart) > 0.005 and max(apart) > 2 * min(apart)
    drawn = []
    spied = PairedDataset(
        folder, 4, 4, degradation=lambda hr, start, size, scale, random: drawn.append(random.random()) or hr[:12, :12]
    )
    [
        PatchDataset(spied, 48, augment=False, seed=seed)[epoch, index]
        for seed in (4, 5)
        for epoch in (0, 1)
        for index in range(12)
    ]
    assert len(set(drawn)) == 48


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("augment", [False, True])
def test_any_worker_count_and_any_resume_point_see_the_same(folder, augment):
    pairs = PairedDataset(folder, 4, 4, degradation=DEGRADATIONS["blur-noise-jpeg"], cache_bytes=30_000)
    patches = PatchDataset(pairs, 48, augment=augment, seed=2)

    def load(first, workers):
        batches = ResumableBatchSampler(len(patches), 2, seed=2, first_step=first, last_step=5, repeat=2)
        return list(DataLoader(patches, batch_sampler=batches, num_workers=workers))

    whole = load(0, 0)
    for first, workers in [(0, 2), (3, 0)]:
        for found, expected in zip(load(first, workers), whole[first:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(patches[0, 0][0], PatchDataset(pairs, 48, augment=augment, seed=3)[0, 0][0])


def test_whole_images_are_degraded_too(folder):
    pairs = PairedDataset(folder, 4, 12, degradation=blur_noise_jpeg)
    lr, hr = PatchDataset(pairs, None, augment=False, seed=0)[0, 1]
    assert lr.shape == (3, hr.shape[1] // 4, hr.shape[2] // 4) and not torch.equal(lr, pairs[1][0])
    assert torch.equal(pairs[1][0], PairedDataset(folder, 4, 12)[1][0])  # validation stays with bicubic
