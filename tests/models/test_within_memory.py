"""Tiles against the whole image; how far networks see, found with NaN; the memory counted."""

import re
import warnings

import pytest
import torch

from models import SR_MODELS
from models.bicubic import Bicubic
from models.ops.tiled import TiledUpscaler, costs, tiles

SMALL = {
    "EDSR": dict(channels=8, blocks=2),
    "RCAN": dict(channels=8, groups=2, blocks=2, reduction=4),
    "VDSR": dict(channels=8, blocks=3),
    "SRResNet": dict(channels=8, blocks=2),
    "RRDBNet": dict(channels=8, blocks=1, growth=4),
    "HAT": dict(embed=12, depths=(2,), heads=(2,), window=8, squeeze_factor=6, channels=8),
}
GLOBAL = ("RCAN", "HAT")


def build(name: str, scale: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return SR_MODELS[name](scale=scale, **SMALL[name]).double().eval()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SMALL)
def test_any_memory_gives_the_same_image(name, scale):
    net, lr = build(name, scale), torch.rand(1, 3, 61, 47, dtype=torch.double) * 2 - 1
    seen = []  # sizes of what the network or its reconstruction is given

    def watched(work):
        return lambda *inputs: seen.append(inputs[0].shape[2] * inputs[0].shape[3]) or work(*inputs)

    with torch.inference_mode():
        expected, pixels = net(lr), 61 * 47
        whole, body, tail = costs(net, lr)
        net.forward = watched(net.forward)
        assert torch.equal(TiledUpscaler(net, int(1 + pixels * whole))(lr), expected) and seen == [pixels]
        if name != "VDSR":
            net.forward, net.forward_head = None, watched(net.forward_head)  # the body whole, its reconstruction not
            seen.clear()
            net.receptive_radius, reach = None, getattr(net, "receptive_radius", None)
            with warnings.catch_warnings(record=True) as caught:
                got = TiledUpscaler(net, int(min(whole - 1, 0.9 * tail) * pixels))(lr)
            averages = f"{type(net).__name__} needs about .* MiB for 61x47 pixels.*: it averages over the image"
            assert len(caught) <= 1 and all(re.match(averages, str(w.message)) for w in caught)
            assert len(seen) > 1 and max(seen) < pixels
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
            net.receptive_radius = reach
        if name not in GLOBAL:
            del net.forward
            net.forward = watched(net.forward)
            seen.clear()
            torch.testing.assert_close(
                TiledUpscaler(net, int(0.2 * body * pixels or 0.2 * whole * pixels))(lr), expected, rtol=0, atol=1e-12
            )
            assert len(seen) > 1 and max(seen) < pixels


def test_what_cannot_be_cut_runs_whole_with_a_warning():
    net, lr = build("RCAN", 2), torch.rand(1, 3, 61, 47, dtype=torch.double)
    with torch.inference_mode(), pytest.warns(UserWarning, match="RCAN needs about .* averages over the image"):
        got = TiledUpscaler(net, 1000)(lr)
    torch.testing.assert_close(got, net(lr), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SMALL)
def test_reach_is_how_far_a_pixel_sees(name, scale):
    net = build(name, scale)
    if name in GLOBAL:
        assert net.receptive_radius is None
        return
    middle, size = net.receptive_radius + 2, 2 * net.receptive_radius + 5
    lr = torch.zeros(1, 3, size, size, dtype=torch.double)
    lr[..., middle, middle] = torch.nan  # spreads to all that sees it
    with torch.inference_mode():
        touched = net(lr).isnan().any(dim=1)[0]
    touched = touched.unflatten(1, (size, scale)).unflatten(0, (size, scale)).any(3).any(1).nonzero()
    assert (
        net.receptive_radius - 1 <= (touched - middle).abs().max() <= net.receptive_radius
    )  # no less than needed, and hardly more


@pytest.mark.parametrize("reach, pixels", [(0, 1), (2, 100), (3, 400), (5, 77), (2, 10**6)])
@pytest.mark.parametrize("size", [(1, 1), (30, 17), (100, 8), (9, 64)])
def test_tiles_cover_every_pixel_once_and_see_as_far_as_they_must(size, reach, pixels):
    seen = torch.zeros(size, dtype=torch.int)
    for rows, columns in tiles(*size, pixels, reach):
        seen[rows[1] : rows[2], columns[1] : columns[2]] += 1
        for (start, first, last, end), length in zip((rows, columns), size):
            assert start == max(0, first - reach) and end == min(length, last + reach)
        assert (rows[3] - rows[0]) * (columns[3] - columns[0]) <= max(
            pixels, (3 * reach + 1) * max(3 * reach + 1, *size)
        )
    assert (seen == 1).all()


def test_a_network_of_unknown_inside_runs_whole():
    lr = torch.rand(1, 3, 20, 20)
    assert torch.equal(TiledUpscaler(Bicubic(4), 1)(lr), Bicubic(4)(lr))


def test_bf16_takes_less_and_is_counted_by_itself():
    net, lr = build("EDSR", 2).float(), torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        full = costs(net, lr)
        with torch.autocast("cpu", torch.bfloat16):
            half = costs(net, lr)
        assert costs(net, lr) == full and all(a < b for a, b in zip(half, full))
