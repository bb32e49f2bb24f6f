"""Distances of images too large for the memory: those of the whole image, and no more than the memory."""

import pytest
import torch

from benchmarks.judges import untrained
from metrics.ops.tiles import REACH
from models.ops.tiled import Widest


def pair(height, width):
    torch.manual_seed(0)
    return torch.rand(2, 1, 3, height, width) * 2 - 1


CASES = [("lpips-alex", (531, 407)), ("lpips-squeeze", (390, 900)), ("tiny", (531, 407)), ("lpips-vgg", (400, 149))]


@pytest.mark.parametrize("name, size", CASES)
def test_is_the_whole_images(name, size):
    torch.manual_seed(0)
    judge = untrained(name)
    sr, hr = pair(*size)
    # Differences where tiles meet and at the borders alone: what is lost or counted twice there would not drown.
    seams = torch.zeros_like(hr)
    for x in (0, 128, 256, 384, 512, 640, 768, size[1] - 1):
        seams[..., max(0, x - 3) : x + 3] = 1
    sr = torch.where(seams > 0, sr, hr)
    with torch.no_grad():
        whole = judge(sr, hr)
        judge.chunk_pixels = ((3 * REACH) ** 2, 1 << 40)
        with Widest() as widest:
            tiled = judge(sr, hr)
    assert whole > 1e-3
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=0)
    assert widest.most < 1.5 * hr.nbytes + 4 * 64 * 4 * judge.chunk_pixels[0]


def test_with_a_gradient_it_runs_whole():
    torch.manual_seed(0)
    judge = untrained("tiny")
    sr, hr = pair(400, 420)
    grads = []
    for pixels in (1 << 30, 1000):
        judge.chunk_pixels = (pixels, pixels)
        x = sr.clone().requires_grad_(True)
        judge(x, hr).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_several_images_and_references():
    torch.manual_seed(0)
    judge = untrained("tiny")
    references = torch.rand(2, 3, 400, 410) * 2 - 1
    images = torch.rand(3, 2, 3, 400, 410) * 2 - 1
    with torch.no_grad():
        whole = judge.with_reference(references)(images)
        judge.chunk_pixels = (1000, 1 << 40)
        tiled = judge.with_reference(references)(images)
    assert tiled.shape == (3, 2)
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=0)


def test_a_training_never_pays_for_tiles(monkeypatch):
    """Where gradients are on when the reference is given, as in a step, its features are computed once and kept."""
    judge = untrained("tiny")
    judge.chunk_pixels = (1000, 1000)
    distance = judge.with_reference(torch.rand(1, 3, 64, 64) * 2 - 1)
    monkeypatch.setattr("metrics.deep_features.distance_in_tiles", None)
    seen = []
    judge.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():  # the M-step
        distance(torch.rand(6, 1, 3, 64, 64) * 2 - 1)
    assert seen == [1] * 6


def test_tiles_are_of_the_size_that_whole_features_allow(monkeypatch):
    """Not of the larger one without a gradient: a tile's features are kept whole, and twice."""
    judge, asked = untrained("tiny"), []
    judge.chunk_pixels = (1000, 1 << 40)

    def seen(maps, a, b, pixels):
        asked.append(pixels)
        return torch.zeros(1)

    monkeypatch.setattr("metrics.deep_features.distance_in_tiles", seen)
    with torch.no_grad():
        judge(*pair(40, 50))
    assert asked == [1000]
