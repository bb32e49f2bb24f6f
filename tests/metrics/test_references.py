"""What is kept of a data set: the same scores, computed once, within its bound, and gone with the data set."""

import gc
import weakref

import pytest
import torch

from metrics import fidelity, references
from metrics.evaluate import build_metrics, evaluate
from metrics.fidelity import Fidelity, psnr_y, ssim_y
from models.bicubic import Bicubic
from training.validation import BICUBIC, read_validation_set


@pytest.fixture
def metrics(squeeze_file):
    return build_metrics(["squeeze", "ms-ssim"], (squeeze_file,))


@pytest.fixture
def calls(metrics):
    """How many images each call of the LPIPS backbone was given."""
    counts, backbone = [], metrics["LPIPS-squeeze"].backbone
    backbone.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    return counts


@pytest.fixture(autouse=True)
def cache():
    """What `scores` keeps between its calls in one test."""
    global CACHE
    CACHE = references.ReferenceCache()


def scores(pairs, metrics, protocol="paper"):
    return evaluate(BICUBIC[protocol](4), pairs, metrics, protocol, cache=CACHE)


def test_what_hr_needs_is_computed_once(images, metrics, calls, assert_same):
    pairs = read_validation_set([images], 4, "paper")
    first = scores(pairs, metrics)
    assert len(calls) == 8
    assert_same(scores(pairs, metrics), first)
    assert len(calls) == 12
    direct = [metrics["LPIPS-squeeze"](*upscaled(pair)).item() for pair in pairs]
    assert first["LPIPS-squeeze"] == pytest.approx(direct, abs=1e-6)


def upscaled(pair):
    lr, hr = (image[None] for image in pair)
    return Bicubic(4)(lr).clamp(-1, 1), hr


@pytest.mark.parametrize("kept", [0, 1_500_000])
def test_images_beyond_the_bound_are_prepared_again(images, metrics, calls, kept, monkeypatch, assert_same):
    pairs = read_validation_set([images], 4, "paper")
    expected = scores(pairs, metrics)
    monkeypatch.setattr(references, "KEPT_BYTES", kept)
    again = read_validation_set([images], 4, "paper")
    calls.clear()
    for _ in range(2):
        assert_same(scores(again, metrics), expected)
    assert len(calls) == 16 if kept == 0 else 12 < len(calls) < 16


def test_other_metrics_protocols_or_images_get_their_own(images, metrics, calls):
    pairs = read_validation_set([images], 4, "paper")
    both = scores(pairs, metrics)
    swapped = dict(zip(metrics, reversed(metrics.values())))
    assert scores(pairs, swapped)["LPIPS-squeeze"] == both["1-MS-SSIM"]
    calls.clear()
    alone = scores(pairs, {"LPIPS-squeeze": metrics["LPIPS-squeeze"]})
    assert alone["LPIPS-squeeze"] == both["LPIPS-squeeze"] and "1-MS-SSIM" not in alone and len(calls) == 8
    assert scores(pairs, {}, "standard")["PSNR-Y"] != both["PSNR-Y"]  # shaves


def test_the_cache_keeps_one_data_set_alone(images, metrics):
    pairs = read_validation_set([images], 4, "paper")
    scores(pairs, metrics)
    kept, there = weakref.ref(CACHE.latest), weakref.ref(pairs)
    other = read_validation_set([images], 4, "paper")
    scores(other, metrics)
    del pairs
    gc.collect()
    assert kept() is None and there() is None and CACHE.pairs is other


def test_what_goes_wrong_in_reading_ahead_is_said(metrics):
    class Broken:
        scale = 4

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index == 1:
                raise ValueError("second.png is gone")
            return torch.zeros(3, 12, 12) - 0.5, torch.zeros(3, 48, 48) - 0.5

    with pytest.raises(ValueError, match="second.png is gone"):
        scores(Broken(), metrics)


@pytest.mark.parametrize("shave", [0, 3])
@pytest.mark.parametrize("strip", [1, 61 * 7, 1 << 20])
def test_strips_change_nothing(strip, shave, monkeypatch):
    """On luma and on RGB."""
    hr = torch.rand(2, 3, 45, 61, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sr = hr + 0.1 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))
    expected = psnr_y(sr, hr, shave), ssim_y(sr, hr, shave)
    monkeypatch.setattr(fidelity, "_STRIP", strip)
    for got in (Fidelity(hr, shave)(sr).values(), (psnr_y(sr, hr, shave), ssim_y(sr, hr, shave))):
        for value, wanted in zip(got, expected):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-11)
    rgb = Fidelity(hr, shave, rgb=True)(sr)
    for name, wanted in zip(("PSNR-Y", "SSIM-Y"), expected):
        torch.testing.assert_close(rgb[name], wanted, rtol=0, atol=1e-11)
    full = (rgb["PSNR-RGB"], rgb["SSIM-RGB"])
    monkeypatch.setattr(fidelity, "_STRIP", 1 << 20)
    for value, wanted in zip(full, list(Fidelity(hr, shave, rgb=True)(sr).values())[2:]):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-11)
