"""Weights of large images: those of the whole image, in bounded memory; and the picture of them."""

import pytest
import torch
from PIL import Image

import train
from losses.weighting import WeightingNet
from models import SR_MODELS
from training import figures


def images(height, width, scale=4):
    random = torch.Generator().manual_seed(0)
    lr = torch.rand(1, 3, height // scale, width // scale, generator=random) * 2 - 1
    hr = torch.rand(1, 3, height, width, generator=random) * 2 - 1
    return lr, hr


def trained(**options) -> WeightingNet:
    """A weighting network whose normalisation has seen something, and whose weights differ from pixel to pixel."""
    torch.manual_seed(0)
    net = WeightingNet(channels=8, **options).train()
    with torch.no_grad():
        net.conv[-1].weight.mul_(20)
        _, hr = images(24, 24)
        net(hr, hr.flip(-1), 0.5)
    return net


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(96, 84), (61, 75), (20, 130)])
@pytest.mark.parametrize("k", [0.3, 0.9])
@torch.no_grad()
def test_weights_in_tiles_are_those_of_the_whole_image(scale, size, k, monkeypatch):
    monkeypatch.setattr(figures, "TILE", 900)
    net = trained(scale=scale)
    _, hr = images(*size)
    sr = hr.flip(-1) * 0.7
    found = figures.weights_of(net, hr, sr, k)
    assert net.training
    expected = net.eval()(hr, sr, k)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert expected.std() > 1e-2
    torch.testing.assert_close(found.mean(dim=(-2, -1)), torch.full((1, 3), k), rtol=0, atol=1e-5)
    # Tiles whose own FixedSum made each mean k would be others.
    half = net(hr[..., : size[1] // 2], sr[..., : size[1] // 2], k)
    assert (half - expected[..., : size[1] // 2]).abs().max() > 1e-4


def test_the_picture_of_a_large_image_is_made_in_parts(monkeypatch):
    """No network sees more than its share at once, and no whole image is given to matplotlib."""
    monkeypatch.setattr(figures, "TILE", 4096)
    monkeypatch.setattr(figures, "MEMORY", 4 << 20)
    monkeypatch.setattr(figures, "LONGEST", 64)
    net, weighting = SR_MODELS["EDSR"](scale=4, blocks=1, channels=8).train(), trained()
    lr, hr = images(480, 320)
    seen, drawn = [], []
    weighting.conv[0].register_forward_hook(lambda module, inputs, out: seen.append(out.shape[-2] * out.shape[-1]))
    whole = net.forward_head.__func__
    monkeypatch.setattr(type(net), "forward_head", lambda *of: drawn.append(of[1].shape[-1]) or whole(*of))
    shown = figures._shown
    sizes = []
    monkeypatch.setattr(figures, "_shown", lambda image: sizes.append(shown(image).shape[:2]) or shown(image))
    picture = figures.weight_maps({"L1+TLW": (net, weighting)}, lr, hr)
    assert max(seen) <= 4096 and sum(seen) > hr[0, 0].numel()
    assert len(drawn) > 1 and max(drawn) < lr.shape[-1]
    assert set(sizes) == {(64, 43)}
    assert net.training and weighting.training and picture.startswith(b"\x89PNG")


def test_a_small_image_is_shown_as_it_is(tmp_path):
    picture = figures.weight_maps({"a": (SR_MODELS["EDSR"](scale=4, blocks=1, channels=8), trained())}, *images(48, 60))
    (tmp_path / "x.png").write_bytes(picture)
    assert Image.open(tmp_path / "x.png").width == pytest.approx(1488, abs=2)
    assert figures._shown(images(48, 60)[1]).shape == (48, 60, 3)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 5 bytes"), ValueError("odd")])
def test_a_picture_that_fails_costs_one_line(tiny_args, workplace, monkeypatch, capsys, error):
    """Neither the table, nor the next command, nor the exit code."""

    def fail(*of):
        raise error

    monkeypatch.setattr(figures, "weight_maps", fail)
    train.main([*tiny_args, "--losses", "L1+TLW", "--modelpath", "run"])
    out, err = capsys.readouterr()
    assert err == "" and "note: run/weights.png was not drawn (" in out
    assert "written: run/val.json" in out and "val.py --modelpath" in out.splitlines()[-1]


def test_a_table_without_memory_costs_the_code_alone(tiny_args, workplace, monkeypatch, capsys):
    def fail(*of, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes")

    monkeypatch.setattr(train, "evaluate_run", fail)
    with pytest.raises(SystemExit) as end:
        train.main([*tiny_args, "--losses", "L1", "--modelpath", "run"])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and err.count("\n") == 1 and "can't allocate memory" in err
    assert "val.py --modelpath" in out.splitlines()[-1]
