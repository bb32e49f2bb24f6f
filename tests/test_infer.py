"""infer.py against the network called by hand; files of all kinds; bad input; Ctrl-C."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.data import astronaut

import configs
import infer
from models import build_network, model_id
from runs.checkpoint import serialize

ROOT = Path(infer.__file__).parent
OPTIONS = {"channels": 8, "blocks": 2}


def make_run(folder: Path, model="EDSR", losses=("L1",), scale=2, best=True, last=True, **options) -> Path:
    """A run's folder with networks of random weights, another for each loss and each of best and last."""
    folder.mkdir(parents=True)
    options = options or OPTIONS
    config = configs.Config(model=model, scale=scale, losses=losses, model_options=options)
    (folder / "config.yaml").write_bytes(configs.to_yaml(config))
    torch.manual_seed(0)
    states = {}
    for name, wanted in (("best", best), ("last", last)):
        for loss in losses:
            net = build_network(model, scale, options)
            states[name, loss] = {
                "sr_network": net.state_dict(),
                "model_id": model_id(model, scale, options),
                "judges": [],
            }
            if wanted and name == "best":
                (folder / f"best_{loss}.pt").write_bytes(serialize(states[name, loss]))
    if last:
        learners = {loss: states["last", loss] for loss in losses}
        (folder / "last.pt").write_bytes(serialize({"learners": learners, "step": 1}))
    return folder


def plain(net: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """pixels (H,W,3) of uint8 through the network as anyone would write it."""
    lr = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() / 127.5 - 1
    with torch.no_grad():
        sr = net.eval()(lr.float())
    return ((sr[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8)


def network(run: Path, which: str, loss: str, model="EDSR", scale=2, options=OPTIONS) -> torch.nn.Module:
    net = build_network(model, scale, options)
    state = torch.load(run / (f"best_{loss}.pt" if which == "best" else "last.pt"), weights_only=True)
    net.load_state_dict((state if which == "best" else state["learners"][loss])["sr_network"])
    return net


def pixels_of(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def close(found: np.ndarray, expected: np.ndarray, most: int = 1) -> bool:
    """The same but for where another order of summation tips a value that lies between two levels."""
    apart = np.abs(found.astype(int) - expected)
    return found.shape == expected.shape and apart.max() <= most and (apart > 0).mean() < 0.01


@pytest.fixture
def run(workplace):
    return make_run(workplace / "checkpoints" / "run")


@pytest.fixture
def photo(workplace):
    path = workplace / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(astronaut()[:60, 200:250]).save(path)
    return path


def refused(capsys, *args: str, code: int = 2) -> str:
    """The one line that infer.py ends with."""
    with pytest.raises(SystemExit) as end:
        infer.main([*map(str, args), "--device", "cpu"])
    err = capsys.readouterr().err
    assert end.value.code == code and err.count("\n") == 1 and err.startswith("infer.py: error: "), err
    return err


def upscale(*args) -> None:
    infer.main([*map(str, args), "--device", "cpu"])


def test_the_newest_run_and_its_best_network(run, photo, capsys):
    upscale("--input", "photos")
    expected = plain(network(run, "best", "L1"), pixels_of(photo))
    assert close(pixels_of(Path("photos_x2/a.png")), expected)
    out = capsys.readouterr().out
    assert "network: EDSR x2 of checkpoints/run, best epoch of L1\n" in out and "photos_x2" in out


def test_which_network_of_a_run(workplace, photo, capsys):
    run = make_run(workplace / "run", losses=("L1", "L1+TLW", "MSE"))
    for args, which, loss, words in (
        ([], "best", "L1+TLW", "best epoch of L1+TLW (of L1, L1+TLW, MSE; --loss names another)"),
        (["--last"], "last", "L1+TLW", "last epoch of L1+TLW (of"),
        (["--loss", "MSE", "--best"], "best", "MSE", "best epoch of MSE\n"),
    ):
        upscale("--input", photo, "--modelpath", run, "--output", "o", "--overwrite", *args)
        assert words in capsys.readouterr().out
        assert close(pixels_of(Path("o/a.png")), plain(network(run, which, loss), pixels_of(photo)))
    assert "run 'L2'; one of: L1, L1+TLW, MSE" in refused(capsys, "--input", photo, "--modelpath", run, "--loss", "L2")


def test_a_run_without_a_best_network(workplace, photo, capsys):
    make_run(workplace / "run", losses=("MSE", "L1"), best=False)
    upscale("--input", photo, "--modelpath", "run")
    assert "last epoch of MSE (of MSE, L1" in capsys.readouterr().out and Path("photos/a_x2.png").exists()
    assert "best_MSE.pt" in refused(capsys, "--input", photo, "--modelpath", "run", "--best")


def test_what_is_there_is_skipped(run, photo, capsys):
    upscale("--input", "photos")
    first = Path("photos_x2/a.png").stat().st_mtime_ns
    (photo.parent / "b.png").write_bytes(photo.read_bytes())
    capsys.readouterr()
    upscale("--input", "photos")
    assert Path("photos_x2/a.png").stat().st_mtime_ns == first and Path("photos_x2/b.png").exists()
    assert capsys.readouterr().out.split("\n")[3].split()[:4] == ["photos", "1", "1", "0"]
    upscale("--input", "photos", "--overwrite")
    assert Path("photos_x2/a.png").stat().st_mtime_ns > first


def test_kinds_of_files(run, workplace):
    """Bits, grey, palettes, orientation and profiles come through; all pixels are the network's."""
    net, rgb = network(run, "best", "L1"), astronaut()[:40, 200:248].copy()
    folder = workplace / "in"
    folder.mkdir()
    grey = rgb[..., 1]
    tifffile.imwrite(folder / "deep.tif", rgb.astype(np.uint16) * 257, photometric="rgb")
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(rgb).quantize(16).save(folder / "palette.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(rgb).save(
        folder / "turned.webp", lossless=True, exif=exif, icc_profile=b"x" * 16 + b"RGB " + b"x" * 200
    )
    upscale("--input", "in", "--format", "same")
    out = workplace / "in_x2"
    expected = plain(net, rgb.copy())
    deep = tifffile.imread(out / "deep.tif")
    assert deep.dtype == np.uint16 and np.abs(deep / 257 - expected).max() <= 0.51 and (deep % 257 > 0).mean() > 0.5
    assert Image.open(out / "grey.png").mode == "L"
    assert close(pixels_of(out / "grey.png"), plain_mean(net, grey))
    assert close(
        pixels_of(out / "palette.png"), plain(net, np.asarray(Image.open(folder / "palette.png").convert("RGB")))
    )
    assert close(pixels_of(out / "turned.webp"), plain(net, np.rot90(rgb, -1).copy()))
    turned = Image.open(out / "turned.webp")
    assert turned.info["icc_profile"][16:20] == b"RGB " and turned.getexif().get(274) is None


def plain_mean(net, grey: np.ndarray) -> np.ndarray:
    lr = torch.from_numpy(grey)[None, None].expand(1, 3, -1, -1) / 127.5 - 1
    with torch.no_grad():
        sr = net.eval()(lr.float()).mean(1)
    return ((sr[0] + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8)


def test_transparent_edges_have_no_fringe(workplace):
    """A disc of one colour on clear black: whatever is seen of the result has that colour."""
    y, x = np.mgrid[:40, :48]
    alpha = (255 * np.clip(15.5 - np.hypot(y - 20, x - 24), 0, 1)).round().astype(np.uint8)
    rgb = np.where(alpha[..., None] > 0, np.array([230, 180, 40], np.uint8), 0)
    Image.fromarray(np.dstack([rgb, alpha])).save(workplace / "disc.png")
    upscale("--input", "disc.png", "--model", "bicubic", "--scale", "3")
    out = pixels_of(workplace / "disc_x3.png")
    seen = out[..., 3] > 0
    assert out.shape == (120, 144, 4) and 0.2 < seen.mean() < 0.5
    assert (out[seen][:, :3] == (230, 180, 40)).all()
    assert out[60, 72, 3] == 255 and (out[:10, ..., 3] == 0).all()
    dark = np.asarray(Image.fromarray(rgb).resize((144, 120), Image.Resampling.BICUBIC))[seen]
    assert dark.min() < 100  # what enlarging without care makes of it


def test_alpha_is_the_networks(run, workplace):
    rgba = np.dstack([astronaut()[:30, 200:240], astronaut()[100:130, 200:240, 0]])
    assert 0 < rgba[..., 3].min() and rgba[..., 3].max() < 255
    Image.fromarray(rgba).save(workplace / "a.png")
    upscale("--input", "a.png")
    out, net = pixels_of(workplace / "a_x2.png"), network(run, "best", "L1")
    assert close(out[..., :3], plain(net, rgba[..., :3].copy())) and close(
        out[..., 3], plain_mean(net, rgba[..., 3].copy())
    )


@pytest.mark.parametrize(
    "model, options", [("EDSR", OPTIONS), ("RCAN", dict(channels=8, groups=1, blocks=2, reduction=4))]
)
def test_parts_and_whole_are_the_same(workplace, model, options):
    run = make_run(workplace / "run", model, **options)
    Image.fromarray(astronaut()[:150, 200:330]).save(workplace / "a.png")
    for memory in (1, 4096):
        upscale("--input", "a.png", "--modelpath", run, "--memory", memory, "--output", f"m{memory}")
    whole = pixels_of(workplace / "m4096/a.png")
    assert close(pixels_of(workplace / "m1/a.png"), whole)
    net = network(run, "best", "L1", model, 2, options)
    assert close(whole, plain(net, pixels_of(workplace / "a.png")))


def test_networks_that_average(workplace, capsys):
    """Too large for the memory, one line says how to cut the image; --tile gives nearly the same."""
    run = make_run(workplace / "run", "RCAN", channels=8, groups=1, blocks=2, reduction=4)
    Image.fromarray(astronaut()[:150, 200:330]).save(workplace / "a.png")
    upscale("--input", "a.png", "--modelpath", run, "--memory", 1)
    err = capsys.readouterr().err
    assert "averages over the image, so it is not cut; --tile 512 cuts it" in err and err.count("\n") == 1
    upscale("--input", "a.png", "--modelpath", run, "--memory", 1, "--tile", 80, "--output", "t")
    assert capsys.readouterr().err == ""
    whole, tiles = pixels_of(workplace / "a_x2.png"), pixels_of(workplace / "t/a.png")
    assert 0 < np.abs(whole.astype(int) - tiles).max() <= 8
    assert "--tile 64: expected 65 pixels or more" in refused(
        capsys, "--input", "a.png", "--modelpath", run, "--tile", 64
    )


def test_tiles_are_not_needed_by_networks_of_convolutions(run, photo, capsys):
    upscale("--input", photo, "--tile", 80)
    assert "--tile 80: not needed, EDSR goes in parts without a trace" in capsys.readouterr().out


def test_ensemble(run, photo):
    upscale("--input", photo, "--ensemble")
    pixels, net = pixels_of(photo), network(run, "best", "L1")
    lr = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        views = [(k, flip, torch.rot90(lr.flip(3) if flip else lr, k, (2, 3))) for k in range(4) for flip in (0, 1)]
        back = [torch.rot90(net(x), -k % 4, (2, 3)) for k, _, x in views]
    sr = sum(x.flip(3) if flip else x for x, (_, flip, _) in zip(back, views))[0].permute(1, 2, 0) / 8
    expected = ((sr + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8)
    found = pixels_of(photo.with_name("a_x2.png"))
    assert close(found, expected) and not close(found, plain(net, pixels))


def test_bf16(run, photo):
    upscale("--input", photo, "--precision", "bf16")
    found, expected = pixels_of(photo.with_name("a_x2.png")), plain(network(run, "best", "L1"), pixels_of(photo))
    assert 0 < np.abs(found.astype(int) - expected).max() <= 6


def test_files_of_weights(workplace, photo, capsys, monkeypatch):
    spandrel = pytest.importorskip("spandrel")
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    torch.manual_seed(0)
    net = RRDBNet(num_filters=8, num_blocks=1, scale=2)
    torch.save({"params_ema": net.state_dict()}, workplace / "net.pth")
    upscale("--input", photo, "--weights", "net.pth")
    assert "network: ESRGAN x2 of net.pth" in capsys.readouterr().out
    lr = torch.from_numpy(pixels_of(photo)).permute(2, 0, 1)[None] / 255
    theirs = spandrel.ModelLoader().load_from_file(workplace / "net.pth")(lr)[0].permute(1, 2, 0)
    assert close(pixels_of(photo.with_name("a_x2.png")), (theirs * 255).round().numpy().astype(np.uint8))
    run = make_run(workplace / "run")
    assert "name its folder with --modelpath run" in refused(capsys, "--input", photo, "--weights", "run/best_L1.pt")
    assert "no such" in refused(capsys, "--input", photo, "--weights", "none.pth")
    (workplace / "bad.safetensors").write_bytes(b"bad")
    assert "--weights bad.safetensors: cannot be read" in refused(
        capsys, "--input", photo, "--weights", "bad.safetensors"
    )
    assert "no --modelpath beside it" in refused(capsys, "--input", photo, "--weights", "net.pth", "--modelpath", run)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    assert "pip install spandrel" in refused(capsys, "--input", photo, "--weights", "net.pth")


def test_broken_images_are_named_and_left_out(run, photo, capsys):
    good = photo.read_bytes()
    (photo.parent / "broken.png").write_bytes(good[:500])
    Image.fromarray(astronaut()[:9, :9]).save(
        photo.parent / "moving.webp", save_all=True, append_images=[Image.new("RGB", (9, 9))]
    )
    (photo.parent / "z.png").write_bytes(good)
    with pytest.raises(SystemExit) as end:
        upscale("--input", "photos")
    out, err = capsys.readouterr()
    assert end.value.code == 1 and sorted(path.name for path in Path("photos_x2").iterdir()) == ["a.png", "z.png"]
    assert "left out: cannot read image photos/broken.png" in err and "photos/moving.webp: animated" in err
    assert err.count("\n") == 2 and out.split("\n")[3].split()[:4] == ["photos", "2", "0", "2"]


def test_transparency_and_jpeg(run, workplace, capsys):
    Image.new("RGBA", (9, 9)).save(workplace / "a.png")
    with pytest.raises(SystemExit) as end:
        upscale("--input", "a.png", "--format", "jpg")
    assert end.value.code == 1
    assert "infer.py: left out: a.png: a JPEG file holds no transparency; write png" in capsys.readouterr().err
    assert not list(workplace.glob("*.jpg*"))


def test_a_network_that_has_diverged(workplace, photo, capsys):
    run = make_run(workplace / "run")
    state = torch.load(run / "best_L1.pt", weights_only=True)
    state["sr_network"]["tail.1.bias"].fill_(torch.nan)
    (run / "best_L1.pt").write_bytes(serialize(state))
    with pytest.raises(SystemExit) as end:
        upscale("--input", photo, "--modelpath", run)
    assert end.value.code == 1 and "photos/a.png: the network's result has infinite values" in capsys.readouterr().err
    assert not photo.with_name("a_x2.png").exists()


def test_a_full_disk(run, photo, capsys, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(infer, "atomic_write", full)
    assert "photos/a_x2.png (No space left on device)" in refused(capsys, "--input", photo, code=1)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--input", "none"], "--input none: no such file or folder"),
        (["--input", "photos", "--memory", "0"], "--memory 0: expected MiB, from 1"),
        (["--input", "photos", "--output", ""], "--output"),
        (["--input", "photos", "--output", "photos/a.png"], "--output photos/a.png: expected a folder"),
        (["--input", "photos", "--modelpath", "none"], "no config.yaml there"),
        (["--input", "photos", "--model", "EDSR"], "unknown model 'EDSR'; one of: bicubic"),
        (["--input", "photos", "--model", "bicubic", "--loss", "L1"], "no --loss beside it"),
        (["--input", "photos", "--model", "bicubic", "--scale", "1"], "--scale 1: expected 2 to 8"),
        (["--input", "photos", "--scale", "4"], "--scale 4: expected 2, as the network has it"),
        (["--input", "photos", "--suffix", "a/b"], "--suffix a/b: expected part of a file's name"),
        (["--input", "photos", "--best", "--last"], "one of the two"),
        (["--input", "photos", "--device", "tpu"], "--device tpu"),
    ],
)
def test_bad_input(run, photo, capsys, args, words):
    with pytest.raises(SystemExit) as end:
        infer.main(args)
    err = capsys.readouterr().err
    assert end.value.code == 2 and words in err and err.count("\n") == 1, err
    assert sorted(path.name for path in Path().iterdir()) == ["checkpoints", "photos"]


def test_no_run(photo, capsys):
    assert "no run in" in refused(capsys, "--input", photo)


def test_help_imports_no_torch():
    command = [sys.executable, "-X", "importtime", "infer.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "usage: infer.py" in done.stdout
    assert "| torch" not in done.stderr.replace("  ", "") and "numpy" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_half_file(workplace, number):
    """In the middle of many images it ends within a layer; what is there is whole, and the same command goes on."""
    make_run(workplace / "checkpoints" / "run", channels=32, blocks=16)
    folder = workplace / "in"
    folder.mkdir()
    for i in range(30):
        Image.fromarray(astronaut()[: 100 + i, :200]).save(folder / f"{i:02d}.png")
    Image.fromarray(np.tile(astronaut(), (4, 4, 1))).save(folder / "99.png")
    command = [sys.executable, str(ROOT / "infer.py"), "--input", "in", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out = workplace / "in_x2"
    while len(list(out.glob("*.png"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 128 + number and stderr == "", stderr
    assert f"stopped by {number.name}; what is written is whole" in stdout
    written = sorted(out.iterdir())
    assert 3 <= len(written) < 31 and all(path.suffix == ".png" for path in written)
    for path in written:
        with Image.open(path) as image:
            image.verify()
