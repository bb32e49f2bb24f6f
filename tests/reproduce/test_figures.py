"""The papers' figures: the numbers behind them against the papers' equations, and pictures that are there."""

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import configs
import train
from data import make_pair, read_rgb
from metrics.fidelity import psnr_y
from reproduce.figures.__main__ import FIGURES, main
from reproduce.figures.curves import fixed_sum_of
from reproduce.figures.drawing import check_box, correlation, read_images, read_run, square
from reproduce.figures.weights import layers_of
from training.figures import most_different


@pytest.fixture(scope="module")
def run(tiny_args, tmp_path_factory):
    """The folder of a run of three epochs with L1+TLW and L1 that watches one image."""
    folder = tmp_path_factory.mktemp("figures") / "run"
    flags = ["--losses", "L1", "L1+TLW", "--judge", "tiny", "--endepoch", "3", "--k-epochs", "2", "--watch", "1"]
    train.Trainer(configs.load([*tiny_args, *flags, "--modelpath", str(folder)])).fit()
    return folder


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(name, *flags): the rows of the CSV that the command writes, beside a PNG that can be read."""
    monkeypatch.chdir(tmp_path)

    def command(name, *flags):
        main([name, *map(str, flags)])
        with Image.open(f"figures/{name}.png") as image:
            assert min(image.size) > 200 and np.asarray(image).std() > 5
        assert Path(f"figures/{name}.png").stat().st_size < 2 << 20
        with open(f"figures/{name}.csv", newline="") as file:
            return list(csv.DictReader(file))

    return command


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1 and not Path("figures").exists()
    return err


# --- FixedSum and PSPL's attention ---


@pytest.mark.parametrize("total, k", [(50, 0.3), (300, 0.3), (900, 0.3), (250, 0.1), (250, 0.9)])
def test_fixed_sum_is_equation_5(total, k):
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    n = 1000
    expected = x + (k * n - total) / (n - total) * (1 - x) if k * n > total else x - (total - k * n) / total * x
    torch.testing.assert_close(fixed_sum_of(x, total, k), expected)


def test_figure_2(draw):
    rows = draw("fig2")
    assert {row["panel"] for row in rows} == {"a", "b"}
    assert {float(row["k"]) for row in rows if row["panel"] == "a"} == {0.3}
    assert {float(row["S"]) for row in rows if row["panel"] == "b"} == {250}
    for row in rows[::17]:
        k, s, x = (float(row[name]) for name in ("k", "S", "x"))
        expected = x + (k * 1000 - s) / (1000 - s) * (1 - x) if k * 1000 > s else x * k * 1000 / s
        assert float(row["FixedSum"]) == pytest.approx(expected, abs=2e-6)


def test_pspls_attention(draw):
    rows = draw("pspl-attention", "--pspl-max", 3)
    for row in rows[::37]:
        sigma, ssim = float(row["sigma"]), float(row["SSIM"])
        assert sigma == max(0.5, int(row["step"]) / 1000)
        assert float(row["weight"]) == pytest.approx(3 * math.exp(-(((ssim + 1) / sigma) ** 2)), rel=1e-4)


# --- weights ---


def test_layers(run, images):
    trained = read_run(run)
    (weighting,) = trained.weightings.values()
    hr, sr = torch.rand(2, 1, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        last, mu, moved, sample = layers_of(weighting, hr, sr, 0.4).values()
        torch.testing.assert_close(moved, weighting(hr, sr, 0.4))
    torch.testing.assert_close(mu, last.sigmoid())
    assert 0 <= sample.min() and sample.max() <= 1 and moved.mean().item() == pytest.approx(0.4, abs=1e-6)


def test_figure_4(draw, run):
    rows = draw("fig4", "--modelpath", run, "--k", 0.3)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    assert layers == ["last convolution", "sigmoid", "FixedSum, k = 0.3", "a sample"]
    for layer in layers:
        of = [row for row in rows if row["layer"] == layer]
        assert sum(float(row["share"]) for row in of) == pytest.approx(1, abs=1e-4)
        middle = sum(float(row["share"]) * (float(row["from"]) + float(row["to"])) / 2 for row in of)
        if layer.startswith("FixedSum"):
            assert middle == pytest.approx(0.3, abs=0.01)
    ends = [float(row["share"]) for row in rows if row["layer"] == "a sample"]
    assert ends[0] + ends[-1] > 0.5  # nearly binary


def test_figure_5(draw, run):
    rows = draw("fig5", "--modelpath", run, "--columns", 2)
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    for row in rows:
        assert float(row["k"]) == pytest.approx(0.3 + 0.6 * (1 - math.exp(-int(row["epoch"]) / 2)), abs=1e-4)
        assert float(row["mean"]) == pytest.approx(float(row["k"]), abs=0.003)
        assert all(-1 <= float(row[name]) <= 1 for name in row if name.startswith("with "))


def test_figure_5_needs_what_was_watched(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "train with --watch 1" in refused(capsys, "fig5", "--modelpath", tmp_path)
    assert "unknown watched image 'x'" in refused(capsys, "fig5", "--modelpath", run, "--image", "x")
    assert "unknown loss" in refused(capsys, "fig5", "--modelpath", run, "--loss", "L1")
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "0000.npz").write_bytes(b"PK no archive")
    assert "0000.npz: cannot be read" in refused(capsys, "fig5", "--modelpath", tmp_path)


# --- crops ---


def test_a_box_by_hand(draw, run, images):
    """Numbers of the image and of the crop, as computed here."""
    path = images / "coffee.png"
    rows = draw("fig6", "--modelpath", run, "--image", path, "--box", 4, 8, 32)
    assert [row["loss"] for row in rows] == ["bicubic", "L1", "L1+TLW"]
    lr, hr = (x[None] for x in make_pair(read_rgb(path), 4, 12))
    net = read_run(run).nets["L1"]
    with torch.no_grad():
        sr = net(lr).clamp(-1, 1)
    part = (..., slice(4, 36), slice(8, 40))
    row = next(row for row in rows if row["loss"] == "L1")
    assert float(row["PSNR-Y"]) == pytest.approx(psnr_y(sr, hr).item(), abs=1e-3)
    assert float(row["PSNR-Y, crop"]) == pytest.approx(psnr_y(sr[part], hr[part]).item(), abs=1e-3)
    assert (row["image"], row["top"], row["left"], row["width"]) == ("coffee.png", "4", "8", "32")


def test_where_two_losses_differ_most(draw, run, images):
    rows = draw("fig6", "--modelpath", run, "--losses", "L1+TLW", "L1", "--count", 2, "--size", 24)
    assert len(rows) == 6 and len({row["image"] for row in rows}) == 2
    trained, amounts = read_run(run), {}
    with torch.no_grad():
        for name, (lr, hr) in read_images(None, trained.config).items():
            one, other = (trained.nets[loss](lr).clamp(-1, 1) for loss in ("L1+TLW", "L1"))
            box = (..., *most_different(one, other, 24))
            amounts[name] = (one[box] - other[box]).square().mean().item(), box[1].start, box[2].start
    best = max(amounts, key=lambda name: amounts[name][0])
    assert (rows[0]["image"], int(rows[0]["top"]), int(rows[0]["left"])) == (best, *amounts[best][1:])


def test_two_runs_beside_each_other(draw, run, images, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    rows = draw("fig6", "--modelpath", run, tmp_path / "other", "--losses", "L1 (run)", "L1 (other)", "--count", 1)
    assert [row["loss"] for row in rows] == ["bicubic", "L1 (run)", "L1 (other)"]
    assert rows[1]["PSNR-Y"] == rows[2]["PSNR-Y"]


def test_hero(draw, run, images):
    rows = draw("hero", "--modelpath", run, "--image", images / "coffee.png", "--box", 0, 0, 32, "--metric", "tiny")
    assert [row["loss"] for row in rows] == ["bicubic", "L1", "L1+TLW"] and "tiny" in rows[0]
    assert Path("figures/hero.png").stat().st_size < 500_000


@pytest.mark.parametrize("box", [(0, 0, 100), (-1, 0, 16), (0, 0, 4), (40, 40, 16)])
def test_boxes_outside(box):
    with pytest.raises(ValueError, match="--box .*: expected TOP LEFT SIZE"):
        check_box(box, torch.zeros(1, 3, 48, 48))


# --- feature maps ---


def test_feature_maps(draw, images, alex_file, squeeze_file):
    names, files = ["alexnet:relu2", "squeezenet:fire4"], [alex_file, squeeze_file]
    flags = ["--image", images, "--dp-extractors", *names, "--extractor-weights", *files]
    rows = draw("dp-features", *flags, "--channels", 1, 64)
    assert [(row["extractor"], row["channel"]) for row in rows] == [(name, n) for name in names for n in ("1", "64")]
    assert all(0 <= float(row["share of zeros"]) <= 1 for row in rows)


def test_channels_that_are_not_there(images, alex_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--image", images, "--dp-extractors", "alexnet:relu1", "--extractor-weights", alex_file]
    assert "--channels 65: expected channels from 1 to 64" in refused(capsys, "dp-features", *flags, "--channels", 65)


# --- the command ---


def test_names(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "unknown figure 'fig3'; did you mean fig" in refused(capsys, "fig3")
    main([])
    shown = capsys.readouterr().out
    assert all(name in shown for name in FIGURES)
    assert "unknown argument --boxes; did you mean --box" in refused(capsys, "fig6", "--modelpath", "x", "--boxes", "1")


def test_small_things():
    a = torch.arange(12.0).view(3, 4)
    assert correlation(a, 5 - 2 * a) == pytest.approx(-1) and correlation(a, torch.ones(3, 4)) == 0
    whole, above, before = square(torch.zeros(1, 3, 4, 10))
    assert whole.shape == (1, 3, 10, 10) and (above, before) == (3, 0) and whole[0, 0, 0, 0] == 1 != whole[0, 0, 3, 0]
