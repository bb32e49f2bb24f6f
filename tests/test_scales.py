"""Scales 1, which restores images, and 8: trained, validated and used; what cannot be is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import configs
import infer
import train
import val
from runs.evaluations import read_evaluations


@pytest.fixture(scope="module")
def base(tiny_args):
    """Two steps with a judge that needs no file."""
    return [*tiny_args, "--judge", "tiny", "--metrics", "tiny"]


@pytest.fixture
def blurred(workplace, images) -> str:
    """A folder of the images, blurred."""
    Path("blurred").mkdir()
    for path in images.iterdir():
        Image.open(path).filter(ImageFilter.GaussianBlur(1.5)).save(f"blurred/{path.name}")
    return "blurred"


def psnr_y(*paths: Path) -> float:
    """PSNR of the luminance of two images, cropped to multiples of 12."""
    first, second = (np.asarray(Image.open(path), float) @ [65.481, 128.553, 24.966] / 255 for path in paths)
    height, width = (x // 12 * 12 for x in first.shape)
    return 10 * np.log10(255**2 / np.mean((first - second)[:height, :width] ** 2))


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as caught:
        train.main(list(map(str, argv)))
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and err.count("\n") == 1 and not Path("checkpoints").exists()
    return err


@pytest.mark.parametrize("model", ["EDSR", "VDSR"])
def test_images_are_restored(base, blurred, images, capsys, model):
    words = ["--scale", "1", "--model", model, "--steps", "30", "--learning-rate", "3e-3"]
    argv = [*base, *words, "--lrpath", blurred, "--vallrpath", blurred, "--modelpath", "run"]
    train.main(argv)
    out = capsys.readouterr().out
    assert f"{model} x1 on cpu" in out
    rows, paths = (
        {row["loss"]: row for row in read_evaluations(Path("run/val.json"))[0]["rows"]},
        Path(blurred).iterdir(),
    )
    # The row of bicubic is the images as they came.
    assert rows["bicubic"]["PSNR-Y"] == pytest.approx(np.mean([psnr_y(images / p.name, p) for p in paths]), abs=1e-3)
    assert rows["L1"]["PSNR-Y"] > 10
    of = ["--modelpath", "run", "--best", "--metrics", "tiny", "--device", "cpu", "--out", "val.json"]
    val.main([*of, "--folder", str(images), "--lrfolder", blurred])
    again = {row["loss"]: row["PSNR-Y"] for row in read_evaluations(Path("val.json"))[0]["rows"]}
    assert again["L1"] == pytest.approx(rows["L1"]["PSNR-Y"])
    with pytest.raises(SystemExit):
        val.main([*of, "--folder", str(images)])
    assert "--scale 1: expected --lrfolder beside it, the images to restore" in capsys.readouterr().err
    infer.main(["--input", f"{blurred}/rocket.png", "--modelpath", "run", "--loss", "L1", "--output", "out"])
    assert Image.open("out/rocket.png").size == Image.open(images / "rocket.png").size


def test_scale_8(base, images, workplace, capsys):
    train.main([*base, "--scale", "8", "--protocol", "standard", "--modelpath", "run"])
    infer.main(["--input", str(images / "rocket.png"), "--modelpath", "run", "--device", "cpu", "--output", "out"])
    assert Image.open("out/rocket.png").size == (480, 480)
    val.main(["--modelpath", "run", "--scale", "8", "--metrics", "tiny", "--device", "cpu", "--folder", str(images)])
    assert "EDSR (run, last) x8, protocol standard" in capsys.readouterr().out


def test_whole_images_at_scale_8(base, images, workplace):
    at = base.index("--patch")
    args = [*base[:at], *base[at + 2 :], "--batchsize", "1", "--scale", "8", "--protocol", "standard", "--losses", "L1"]
    sizes = train.Trainer(configs.load(args)).experiment.patches.pairs.sizes
    assert sizes == [(48, 48), (48, 72), (48, 48), (48, 48)]  # multiples of 24, as of 12 at the other scales


@pytest.mark.parametrize(
    "words, line",
    [
        ("--scale 1", "--scale 1: expected --lrpath beside it, the images to restore, or a --degradation"),
        ("--scale 1 --degradation blur-noise-jpeg", "--scale 1: expected --vallrpath beside it, the images to restore"),
        ("--scale 8", "--protocol paper: crops to multiples of 12, which x8 does not divide; use standard"),
        (
            "--scale 8 --protocol standard --model HAT --model-options",
            "--scale 8: HAT comes in 2, 3, 4; networks for x8: EDSR RCAN VDSR",
        ),
        ("--scale 5", "--scale"),
        ("--scale 8 --protocol standard --patch 36", "patch=36 is not divisible by scale=8; use 32"),
    ],
)
def test_what_is_refused(base, workplace, capsys, words, line):
    assert line in refused(capsys, *base, *words.split())
