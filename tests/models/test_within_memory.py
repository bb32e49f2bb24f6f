"""Tiles against the whole image; how far networks see, found with NaN; the memory counted."""

import re
import warnings

import pytest
import torch

from models import SR_MODELS
from models.bicubic import Bicubic, MatlabBicubic
from models.ops.ensemble import SelfEnsemble
from models.ops.tiled import BlendedTiles, NotCut, TiledUpscaler, costs, tiles

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
    net, lr = torch.nn.Upsample(scale_factor=2), torch.rand(1, 3, 40, 40)
    with pytest.warns(NotCut, match="how far it sees is not known"):
        assert torch.equal(TiledUpscaler(net, 1)(lr), net(lr))


@pytest.mark.parametrize("bicubic", [Bicubic, MatlabBicubic])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_in_tiles(bicubic, scale):
    net, lr = bicubic(scale).double(), torch.rand(1, 3, 61, 47, dtype=torch.double)
    expected = net(lr)
    net.forward = lambda part, whole=net.forward: whole(part) if part.shape[2:] != lr.shape[2:] else None
    torch.testing.assert_close(TiledUpscaler(net, 2**17)(lr), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", [1 << 40, 200_000, 20_000])
@pytest.mark.parametrize("name", ["EDSR", "HAT", "VDSR"])
def test_finish_is_applied_to_every_part(name, memory):
    net, lr = build(name, 2), torch.rand(2, 3, 45, 37, dtype=torch.double) * 2 - 1

    def to_grey_levels(sr):
        return sr.mean(1, keepdim=True).mul(1000).round().to(torch.int32)

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCut)
        got = TiledUpscaler(net, memory, to_grey_levels)(lr)
        assert got.dtype == torch.int32 and (got - to_grey_levels(net(lr))).abs().max() <= 1


@pytest.mark.parametrize("tile, overlap, align", [(80, 32, 1), (80, 32, 16), (98, 32, 7), (64, 24, 16), (148, 32, 1)])
@pytest.mark.parametrize("size", [(150, 97), (60, 200), (161, 162)])
def test_blended_tiles_of_a_network_that_sees_a_quarter_of_the_overlap(size, tile, overlap, align):
    net, lr, seen = build("EDSR", 2), torch.rand(1, 3, *size, dtype=torch.double) * 2 - 1, []
    assert net.receptive_radius == 8
    overlap = max(overlap, 32) if tile > 64 else overlap
    blended = BlendedTiles(lambda part: seen.append(tuple(part.shape[2:])) or net(part), 2, tile, overlap, align)
    with torch.inference_mode():
        apart = (blended(lr).double() - net(lr)).abs().max()
    if overlap >= 32:
        assert apart < 1e-6
    assert len(seen) > 1 and all(max(shape) < tile + align for shape in seen)
    for start, _, _ in blended.cuts(max(size)):
        assert start % align == 0


def test_blended_tiles_have_no_seams():
    """Where tiles differ, here by a constant each, the result goes from one to the other in small steps."""
    values = iter(range(100))
    sr = BlendedTiles(lambda lr: torch.full((1, 3, *lr.shape[2:]), float(next(values))), 1, 80, 32)(
        torch.zeros(1, 3, 80, 200)
    )
    assert sr[0, 0, 0, 0] == 0 and sr[0, 0, 0, -1] == values.__next__() - 1
    steps = sr.diff(dim=3)
    assert 0 <= steps.min() and steps.max() < 1 / 15


def test_blended_tiles_of_a_network_that_averages_are_near_the_whole():
    net, lr = build("RCAN", 2), torch.rand(1, 3, 150, 97, dtype=torch.double)
    with torch.inference_mode():
        apart = (BlendedTiles(net, 2, 80, 32)(lr) - net(lr)).abs().max()
    assert 1e-7 < apart < 0.05


def test_tiles_that_cannot_overlap_so_much():
    with pytest.raises(ValueError, match="tile=70; expected 72 or more"):
        BlendedTiles(lambda lr: lr, 1, 70, 32, 8)


def test_the_ensemble_is_the_mean_over_the_eight_symmetries():
    net, lr = build("EDSR", 2), torch.rand(1, 3, 12, 9, dtype=torch.double)
    with torch.inference_mode():
        views = [torch.rot90(x, k, (2, 3)) for x in (lr, lr.flip(3)) for k in range(4)]
        back = [torch.rot90(net(x), -k % 4, (2, 3)) for x, k in zip(views, [*range(4)] * 2)]
        expected = sum(x if i < 4 else x.flip(3) for i, x in enumerate(back)) / 8
        got = SelfEnsemble(net)(lr)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(SelfEnsemble(net)(lr.mT.flip(2)), got.mT.flip(2), rtol=0, atol=1e-6)


def test_bf16_takes_less_and_is_counted_by_itself():
    net, lr = build("EDSR", 2).float(), torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        full = costs(net, lr)
        with torch.autocast("cpu", torch.bfloat16):
            half = costs(net, lr)
        assert costs(net, lr) == full and all(a < b for a, b in zip(half, full))
