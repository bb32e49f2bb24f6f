"""--color grey: networks of one channel on the luminance of images, from training to the file that is exported."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import configs
import convert
import export
import infer
import train
import val
from data import PairedDataset, read_rgb, to_grey
from losses import LOSSES, Target, build_loss
from metrics.evaluate import evaluate
from metrics.fidelity import psnr_y, ssim_y
from metrics.judges import build_judge
from models import SR_MODELS, build_network
from models.bicubic import MatlabBicubic
from models.export import UnitRange
from models.ops.tiled import TiledUpscaler
from runs.checkpoint import load_checkpoint, load_networks
from runs.evaluations import read_evaluations
from training import stop_signals
from training.learner import build_learners

SMALL = {
    "EDSR": {"blocks": 1, "channels": 8},
    "RCAN": {"groups": 1, "blocks": 1, "channels": 8, "reduction": 4},
    "VDSR": {"channels": 8},
    "SRResNet": {"blocks": 1, "channels": 8},
    "RRDBNet": {"blocks": 1, "channels": 8, "growth": 4, "padding": "black"},
    "HAT": {"embed": 24, "depths": [2], "heads": [2], "window": 4, "squeeze_factor": 2, "channels": 8},
    "HAT-TLW": {"embed": 24, "depths": [2], "heads": [2], "squeeze_factor": 2, "channels": 8},
}


@pytest.fixture(scope="module")
def base(tiny_args):
    return [*tiny_args, "--judge", "tiny", "--metrics", "tiny", "--color", "grey"]


@pytest.fixture(scope="module")
def grey_run(base, tmp_path_factory):
    """A run of two steps of L1+TLW and L1, and its folder."""
    folder = tmp_path_factory.mktemp("grey") / "run"
    train.main([*base, "--watch", "1", "--modelpath", str(folder)])
    return folder


# --- images -----------------------------------------------------------------------------------------------------------


def test_luminance_is_pillows():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(to_grey(rgb)[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(to_grey(levels.repeat(3, axis=2)), levels)


def test_data_are_those_of_grey_files(images, workplace):
    """Of luminance saved as files: the same pairs, whole and in parts, in memory and not, with LR of its own."""
    for path in images.iterdir():
        Path("grey").mkdir(exist_ok=True)
        Image.open(path).convert("L").save(f"grey/{path.name}")
    files = PairedDataset("grey", 4, 4)
    for memory in (2 << 30, 0):
        of_rgb = PairedDataset(images, 4, 4, grey=True, cache_bytes=memory)
        for (lr, hr), (other_lr, other_hr) in zip(of_rgb, files, strict=True):
            assert lr.shape[0] == hr.shape[0] == 1
            assert torch.equal(lr.expand(3, -1, -1), other_lr) and torch.equal(hr.expand(3, -1, -1), other_hr)
        part = of_rgb.crop(0, (8, 12), (16, 20))
        assert all(np.array_equal(x.repeat(3, axis=2), y) for x, y in zip(part, files.crop(0, (8, 12), (16, 20))))
    Path("lr").mkdir()
    for path in images.iterdir():
        rgb = Image.open(path)
        rgb.resize((rgb.width // 4, rgb.height // 4)).save(f"lr/{path.name}")
    lr, hr = PairedDataset(images, 4, 4, grey=True, lr_folders="lr", cache_bytes=0)[0]
    expected = to_grey(read_rgb("lr/astronaut.png"))[: lr.shape[1], : lr.shape[2], 0] / 255 * 2 - 1
    assert np.allclose(lr[0], expected, atol=1e-6)


def test_scores_are_of_the_grey_levels(images, workplace):
    """The field's: a grey image is its own Y in [0,255]. By scikit-image, and as three equal channels say it."""
    skimage = pytest.importorskip("skimage.metrics")
    pairs = PairedDataset(images, 4, 4, grey=True, round_lr=True)
    scores = evaluate(MatlabBicubic(4), pairs, {"tiny": build_judge("tiny")}, "standard")
    for i, (lr, hr) in enumerate(pairs):
        sr = np.rint((MatlabBicubic(4)(lr[None])[0, 0].double().numpy() + 1) * 127.5).clip(0, 255)
        levels = np.rint((hr[0].double().numpy() + 1) * 127.5)
        inside = (slice(4, -4), slice(4, -4))
        expected = skimage.peak_signal_noise_ratio(levels[inside], sr[inside], data_range=255)
        assert scores["PSNR-Y"][i] == pytest.approx(expected, abs=1e-4)
        tensors = [torch.from_numpy(x / 127.5 - 1).float()[None, None] for x in (sr, levels)]
        assert psnr_y(*tensors, shave=4).item() == pytest.approx(expected, abs=1e-4)
        assert ssim_y(*tensors, shave=4).item() == pytest.approx(scores["SSIM-Y"][i], abs=1e-5)
        rgb = [x.expand(-1, 3, -1, -1) for x in tensors]
        assert scores["tiny"][i] == pytest.approx(build_judge("tiny")(*rgb).item(), rel=1e-3)


# --- networks and losses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", SR_MODELS)
@torch.no_grad()
def test_networks(model):
    """Whole and in tiles; their channels inside are as many as for RGB."""
    torch.manual_seed(0)
    net = build_network(model, 2, SMALL[model] | {"colours": 1}).eval()
    lr = torch.rand(2, 1, 33, 40) * 2 - 1
    sr, features = net.forward_with_features(lr)
    assert sr.shape == (2, 1, 66, 80) and features.shape[1] == net.feature_channels
    torch.testing.assert_close(TiledUpscaler(net, 3_000_000)(lr), sr, rtol=0, atol=1e-5)
    rgb = build_network(model, 2, SMALL[model])
    other = {name for name, x in net.state_dict().items() if x.shape != rgb.state_dict()[name].shape}
    assert {name.rsplit(".", 1)[0].split(".")[0] for name in other} <= {
        "head",
        "tail",
        "mean",
        "conv_first",
        "conv_last",
    }


@pytest.mark.parametrize("loss", [*LOSSES, "L1+TLW[weights=shuffled,weighting_scale=2]", "L1+DP+GAN[gan=ragan]"])
def test_losses(loss):
    """Each is a scalar with a gradient, of the network and of what learns beside it."""
    config = configs.Config(losses=(loss,), color="grey", patch=32, batchsize=2, model_options=SMALL["EDSR"])
    (learner,) = build_learners(config, torch.device("cpu"))
    hr = torch.rand(2, 1, 32, 32) * 2 - 1
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    extractors = {name: build_judge("tiny") for name in learner.loss.extractors}
    values = train.train_step([learner], build_judge("tiny"), extractors, lr, hr, 0.0, "fp32")
    helper_loss, value = values[learner.name]
    assert value.isfinite() and (helper_loss is None or helper_loss.isfinite()) and int(learner.skips[0]) == 0
    assert all(learner.opt.state[p]["exp_avg"].any() for p in learner.net.parameters())


def test_judges_see_three_equal_channels():
    judge, hr = build_judge("tiny"), torch.rand(2, 1, 40, 40) * 2 - 1
    images = torch.rand(3, 2, 1, 40, 40) * 2 - 1
    expected = torch.stack([judge(x.expand(-1, 3, -1, -1), hr.expand(-1, 3, -1, -1)) for x in images])
    torch.testing.assert_close(Target.judged_by(judge, hr).distance(images), expected, rtol=1e-4, atol=1e-6)
    plain = Target.judged_by(lambda a, b: (a - b).abs().mean((1, 2, 3)), hr).distance(images)
    torch.testing.assert_close(plain, (images - hr).abs().mean((2, 3, 4)))


def test_a_grey_l1_is_the_rgb_l1_of_equal_channels():
    sr, hr = (torch.rand(2, 1, 8, 8) for _ in range(2))
    loss = build_loss("L1", configs.Config(), None)
    rgb = loss(sr.expand(-1, 3, -1, -1), Target(hr.expand(-1, 3, -1, -1)), 0)
    torch.testing.assert_close(loss(sr, Target(hr), 0), rgb)


# --- a run, and what is made of it ------------------------------------------------------------------------------------


def test_a_run_trains_and_resumes_exactly(base, workplace, at_step, same_files):
    args = [*base, "--endepoch", "2", "--augment", "--degradation", "blur-noise-jpeg"]
    train.Trainer(configs.load([*args, "--modelpath", "whole"])).fit()
    at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(stop_signals.Stopped):
        train.Trainer(configs.load([*args, "--modelpath", "parts"])).fit()
    train.Trainer(configs.load(["--load", "--modelpath", "parts"])).fit()
    same_files(Path("parts"), Path("whole"))
    state = load_checkpoint(Path("whole/last.pt"))["learners"]["L1"]
    assert "colours=1" in state["model_id"] and state["sr_network"]["head.0.weight"].shape[1] == 1


def test_its_pictures_are_there(grey_run):
    assert Image.open(grey_run / "weights.png").size[0] > 100
    with np.load(next((grey_run / "watch").iterdir())) as file:
        hr = next(file[name] for name in file if name.endswith("/hr"))
    assert hr.ndim == 3 and hr.shape[2] == 3 and (hr[..., 0] == hr[..., 2]).all()


def test_val(grey_run, images, workplace, capsys):
    of = ["--modelpath", str(grey_run), "--metrics", "tiny", "--device", "cpu", "--out", "val.json", "--rgb"]
    finished = Path("finished")
    finished.mkdir()
    for path in images.iterdir():
        Image.open(path).convert("L").save(finished / path.name)
    more = ["--save-images", "sr", "--worst", "1", "--sr-folder", f"same={finished}", "--ensemble"]
    val.main([*of, "--folder", str(images), "--protocol", "paper", "standard", *more])
    assert "on grey images" in capsys.readouterr().out
    entries = read_evaluations(Path("val.json"))
    rows = {row["loss"]: row for row in entries[0]["rows"]}
    assert {"bicubic", "L1", "L1+TLW", "L1 (x8)", "same"} <= rows.keys() and rows["same"]["infinite"] == {"PSNR-Y": 4}
    own = json.loads((grey_run / "val.json").read_text())["evaluations"][0]["rows"]
    assert rows["bicubic"]["PSNR-Y"] == pytest.approx(own[0]["PSNR-Y"])
    saved = sorted(Path("sr").rglob("*.png"))
    assert saved and {Image.open(path).mode for path in saved} == {"L"}
    assert Image.open("val_worst.png").size[0] > 100


def test_infer(grey_run, images, workplace):
    """A grey image by the network, and the channels of others each by itself; transparency too."""
    rgb = Image.open(images / "rocket.png")
    rgb.convert("L").save("grey.png")
    rgb.save("rgb.png")
    Image.merge("RGBA", (*rgb.split(), rgb.convert("L"))).save("rgba.png")
    for i, channel in enumerate(rgb.split()):
        channel.save(f"c{i}.png")
    names = ["grey.png", "rgb.png", "rgba.png", "c0.png", "c1.png", "c2.png"]
    of = ["--modelpath", str(grey_run), "--loss", "L1", "--last", "--device", "cpu"]
    infer.main(["--input", *names, *of, "--output", "out"])
    out = {name: np.asarray(Image.open(f"out/{name}")) for name in names}
    assert {name: x.shape[2:] for name, x in out.items()} == dict.fromkeys(names, ()) | {
        "rgb.png": (3,),
        "rgba.png": (4,),
    }
    for i in range(3):  # to rounding
        assert np.abs(out["rgb.png"][..., i].astype(int) - out[f"c{i}.png"]).max() <= 1
    assert np.abs(out["rgb.png"][..., 0].astype(int) - out["rgb.png"][..., 2]).max() > 9
    net = load_networks(grey_run, "last", ["L1"])[1]["L1"].eval()
    with torch.no_grad():
        sr = net(torch.from_numpy(np.asarray(Image.open("grey.png")) / 255 * 2 - 1).float()[None, None])
    assert np.abs(out["grey.png"] - ((sr[0, 0] + 1) * 127.5).clamp(0, 255).numpy()).max() <= 0.51
    tiled = ["--memory", "1"]
    infer.main(["--input", "rgb.png", *of, "--output", "tiled", *tiled])
    assert np.abs(np.asarray(Image.open("tiled/rgb.png")).astype(int) - out["rgb.png"]).max() <= 1
    infer.main(["--input", "rgb.png", *of, "--output", "ensemble", "--ensemble"])
    assert np.asarray(Image.open("ensemble/rgb.png")).shape == out["rgb.png"].shape


def test_export_and_back(grey_run, base, workplace, capsys, assert_same):
    of = ["--modelpath", str(grey_run), "--loss", "L1", "--to"]
    export.main([*of, "safetensors", "--output", "net.safetensors"])
    net = load_networks(grey_run, "last", ["L1"])[1]["L1"].eval()
    Image.new("L", (20, 16), 90).save("a.png")
    infer.main(["--input", "a.png", "--weights", "net.safetensors", "--device", "cpu"])
    assert Image.open("a_x4.png").mode == "L"
    convert.main(["net.safetensors", "--modelpath", "back"])
    config, nets, _ = load_networks(Path("back"), "best")
    assert config.color == "grey"
    assert_same(dict(nets["L1"].state_dict()), dict(net.state_dict()))
    at = base.index("--color")
    for init in ("net.safetensors", str(grey_run)):
        words = [*base[:at], *base[at + 2 :], "--losses", "L1", "--init", init]
        words += ["--init-loss", "L1"] * (init != "net.safetensors")
        begun = train.Trainer(configs.load(words, complete=train.network_settings))
        assert begun.config.color == "grey"
        assert_same(dict(begun.experiment.learners[0].net.state_dict()), dict(net.state_dict()))
    for to in ("spandrel", "edsr"):
        with pytest.raises(SystemExit):
            export.main([*of, to])
        line = capsys.readouterr().err
        assert line.startswith(f"export.py: error: --to {to}: ") and "grey; use --to onnx or --to safetensors" in line


def test_onnx(grey_run, workplace, capsys):
    ort = pytest.importorskip("onnxruntime")
    export.main(["--modelpath", str(grey_run), "--loss", "L1", "--to", "onnx", "--output", "net.onnx"])
    assert "lr: float32 (1,1,h,w)" in capsys.readouterr().out
    lr = torch.rand(1, 1, 19, 26)
    (found,) = ort.InferenceSession("net.onnx").run(["sr"], {"lr": lr.numpy()})
    net = UnitRange(load_networks(grey_run, "last", ["L1"])[1]["L1"].eval())
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), net(lr), rtol=0, atol=1e-5)


def test_from_rgb_weights_all_but_the_ends(base, workplace):
    at = base.index("--color")
    train.Trainer(configs.load([*base[:at], *base[at + 2 :], "--losses", "L1", "--modelpath", "rgb"])).fit()
    words = [*base, "--losses", "L1", "--init", "rgb", "--model-options", "blocks=1", "channels=8", "padding=black"]
    run = train.Trainer(configs.load(words, complete=train.network_settings))
    (note,) = (note for note in run.experiment.notes if note.startswith("init"))
    assert "head: 1 tensor fresh; tail: 2 tensors fresh" in note


def test_what_is_refused(base, workplace, capsys):
    for words in (["--model-options", "colours=1"], ["--color", "gray"]):
        with pytest.raises(SystemExit):
            configs.load([*base, *words])
        assert words[0] in capsys.readouterr().err
    with pytest.raises(ValueError, match="--model-options colours: expected --color grey"):
        configs.Config(model_options={"colours": 1})
    with pytest.raises(ValueError, match="--color grey: spandrel:x.pth is spandrel.s and takes RGB; use one of EDSR"):
        build_network("spandrel:x.pth", 4, {"colours": 1}, {})
