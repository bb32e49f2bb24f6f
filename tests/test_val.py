"""Evaluation: against a slow loop, the command line with and without a run, Table I's bicubic rows, the protocols."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import train
import val
from data import imresize, read_rgb
from metrics.evaluate import evaluate
from metrics.perceptual import LPIPS
from models import SR_MODELS
from models.bicubic import MatlabBicubic
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.evaluations import read_evaluations
from training.validation import BICUBIC, metrics_on, read_validation_set

ROOT = Path(__file__).parents[1]
DATASETS = ROOT.parent / "shared" / "datasets"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_args):
    """A run of two epochs; for reading only."""
    folder = tmp_path_factory.mktemp("run") / "small"
    train.Trainer(train.configs.load([*tiny_args, "--endepoch", "2", "--modelpath", str(folder)])).fit()
    return folder


@pytest.fixture
def run(run_folder, workplace):
    """A copy of it, in checkpoints/ of an empty working folder."""
    shutil.copytree(run_folder, workplace / "checkpoints/small")
    return Path("checkpoints/small")


def to_tensor(rgb01):
    return torch.from_numpy((rgb01 * 2 - 1).astype(np.float32).transpose(2, 0, 1))[None]


def slow_scores(net, folder, scale, protocol, lpips=None):
    """What `protocol` documents, one image and one operation after the other."""
    scores = []
    for path in sorted(folder.iterdir()):
        hr = read_rgb(path) / 255
        multiple = 12 if protocol == "paper" else scale
        hr = hr[: hr.shape[0] // multiple * multiple, : hr.shape[1] // multiple * multiple]
        lr = imresize(hr, scale)
        if protocol == "standard":
            lr = np.round(np.clip(lr, 0, 1) * 255) / 255
        with torch.no_grad():
            sr = net(to_tensor(lr))[0].permute(1, 2, 0).double().numpy() / 2 + 0.5
        sr = np.clip(sr, 0, 1)
        if protocol == "standard":
            sr = np.round(sr * 255) / 255
        y_sr, y_hr = rgb2ycbcr(sr)[..., 0], rgb2ycbcr(hr)[..., 0]
        if protocol == "standard":
            y_sr, y_hr = (y[scale:-scale, scale:-scale] for y in (y_sr, y_hr))
        ssim = structural_similarity(
            y_hr, y_sr, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        distance = lpips(to_tensor(sr), to_tensor(hr)).item() if lpips else None
        scores.append((peak_signal_noise_ratio(y_hr, y_sr, data_range=255), ssim, distance))
    return [list(column) for column in zip(*scores)]


@pytest.mark.parametrize("protocol", ["paper", "standard"])
@pytest.mark.parametrize("scale", [3, 4])
def test_evaluate_against_a_slow_loop(images, squeeze_file, protocol, scale):
    torch.manual_seed(0)
    net = SR_MODELS["EDSR"](scale=scale, blocks=1, channels=8)
    pairs = read_validation_set([images], scale, protocol)
    metrics = metrics_on("cpu", ["squeeze"], (squeeze_file,))
    scores = evaluate(net, pairs, metrics, protocol)
    expected = slow_scores(net.eval(), images, scale, protocol, LPIPS("squeeze", weights=(squeeze_file,)))
    assert list(scores) == ["PSNR-Y", "SSIM-Y", "LPIPS-squeeze"]
    for values, slow, tolerance in zip(scores.values(), expected, (2e-4, 1e-5, 1e-5)):
        assert values == pytest.approx(slow, abs=tolerance) and len(values) == 4


def test_the_bicubic_row_is_the_protocols(images):
    rows = {}
    for protocol, net in (
        ("paper", lambda lr: F.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)),
        ("standard", MatlabBicubic(4)),
    ):
        pairs = read_validation_set([images], 4, protocol)
        rows[protocol] = evaluate(BICUBIC[protocol](4), pairs, {}, protocol)
        assert rows[protocol]["PSNR-Y"] == pytest.approx(slow_scores(net, images, 4, protocol)[0], abs=2e-4)
    assert abs(np.subtract(rows["paper"]["PSNR-Y"], rows["standard"]["PSNR-Y"])).min() > 0.01


def test_protocols_crop_and_round_as_documented(images):
    paper, standard = (read_validation_set([images], 4, protocol) for protocol in ("paper", "standard"))
    assert paper.sizes == [(48, 60), (48, 72), (60, 48), (60, 60)]
    assert standard.sizes == [(48, 60), (48, 72), (64, 48), (60, 60)]
    levels = [(pairs[1][0].double() + 1) * 127.5 for pairs in (paper, standard)]
    assert (levels[0] - levels[0].round()).abs().max() > 0.1
    assert (levels[1] - levels[1].round()).abs().max() < 1e-4


def test_the_standard_protocol_shaves_and_rounds_sr(images):
    pairs = read_validation_set([images], 4, "standard")
    hr_of = {tuple(lr.flatten()[:50].tolist()): hr for lr, hr in (pairs[i] for i in range(4))}

    class Border(torch.nn.Module):
        """Right inside by less than half a level, wrong within 4 pixels of the border."""

        def forward(self, lr):
            hr = hr_of[tuple(lr.flatten()[:50].tolist())][None].clone()
            sr = torch.zeros_like(hr)
            sr[..., 4:-4, 4:-4] = hr[..., 4:-4, 4:-4] + 0.4 / 127.5
            return sr

    assert evaluate(Border(), pairs, {}, "standard")["SSIM-Y"] == [1] * 4
    hr_of = {
        tuple(lr.flatten()[:50].tolist()): hr
        for lr, hr in (read_validation_set([images], 4, "paper")[i] for i in range(4))
    }
    assert max(evaluate(Border(), read_validation_set([images], 4, "paper"), {}, "paper")["PSNR-Y"]) < 30


def table_of(out: str) -> dict[tuple[str, str, str], list[str]]:
    """{(data set, protocol, method): scores and the note} of the printed table; empty cells are left out."""
    lines = out[out.index("data set (images)") :].splitlines()
    starts = [0, *(i + 2 for i in range(len(lines[1])) if lines[1].startswith("  -", i))]
    rows, place = {}, ["", ""]
    for line in lines[2:]:
        if line.startswith(("written", "where", "next", "SR images")) or ": no test" in line:
            break
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None])]
        place = [cells[0].split(" (")[0] or place[0], cells[1] or place[1]]
        rows[*place, cells[2]] = [cell for cell in cells[3:] if cell]
    return rows


def test_bicubic_needs_no_checkpoint(images, workplace, capsys):
    val.main(["--model", "bicubic", "--scale", "3", "--folder", str(images), "--lpips", "--device", "cpu"])
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("bicubic x3, protocol paper, cpu\n")
    scores = evaluate(BICUBIC["paper"](3), read_validation_set([images], 3, "paper"), {}, "paper")
    assert table_of(out) == {("cuts", "paper", "bicubic"): [f"{np.mean(values):.4f}" for values in scores.values()]}
    assert "cuts (4)" in out and list(workplace.iterdir()) == []


def test_bicubic_into_a_file(images, workplace):
    val.main(["--model", "bicubic", "--folder", str(images), "--lpips", "--device", "cpu", "--out", "deep/down/b.json"])
    (result,) = read_evaluations(Path("deep/down/b.json"))
    assert (result["model"], result["scale"], result["run"], result["rows"][0]["loss"]) == ("bicubic", 4, "", "bicubic")
    assert Path("deep/down/b.csv").exists()


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run_on_several_folders_with_judge_and_other(run, images, squeeze_file, alex_file, capsys, workplace, which):
    other = workplace / "others"
    shutil.copytree(images, other)
    (other / "coffee.png").unlink()
    folders, weights = [str(images), str(other)], [str(squeeze_file), str(alex_file)]
    val.main(
        [
            "--modelpath",
            str(run),
            "--folder",
            *folders,
            "--lpips",
            "alex",
            "squeeze",
            "--judge-weights",
            *weights,
            "--protocol",
            "standard",
            "--device",
            "cpu",
            *(["--best"] if which == "best" else []),
        ]
    )
    out, err = capsys.readouterr()
    assert err == "" and f"EDSR (small, {which}) x4, protocol standard, cpu\n" in out
    header = next(line for line in out.splitlines() if line.startswith("data set"))
    assert "LPIPS-squeeze (judge)" in header and "LPIPS-alex (judge)" not in header
    assert "s/step (x plain)" in header and "LPIPS-alex" in header and "cuts (4)" in out and "others (3)" in out

    losses = ["bicubic", "L1+TLW", "L1"]
    assert list(table_of(out)) == [(dataset, "standard", loss) for dataset in ("cuts", "others") for loss in losses]
    entries = read_evaluations(run / "val.json")
    for entry, folder in zip(entries, (images, other), strict=True):
        about = {key: value for key, value in entry.items() if key != "rows"}
        assert about == {
            "protocol": "standard",
            "dataset": folder.name,
            "folder": str(folder),
            "lr_folder": "",
            "checkpoint": which,
            "model": "EDSR",
            "run": str(run),
            "scale": 4,
            "judge": "lpips-squeeze",
            "device": "cpu",
            "precision": "fp32",
            "left_out": [],
        }
    net = SR_MODELS["EDSR"](scale=4, blocks=1, channels=8)
    best, last = load_checkpoint(run / "best_L1.pt"), load_checkpoint(run / "last.pt")["learners"]["L1"]
    net.load_state_dict((best if which == "best" else last)["sr_network"])
    names = ["PSNR-Y", "SSIM-Y", "LPIPS-alex", "LPIPS-squeeze"]
    rows = [(entry["dataset"], row) for entry in entries for row in entry["rows"]]
    for (dataset, row), (of, _, loss) in zip(rows, table_of(out), strict=True):
        folder = images if dataset == "cuts" else other
        assert (dataset, row["loss"], row["files"]) == (of, loss, len(list(folder.iterdir())))
        assert list(row["per_image"]) == sorted(path.name for path in folder.iterdir())
        scores = {name: [image[name] for image in row["per_image"].values()] for name in names}
        assert all(row[name] == pytest.approx(np.mean(scores[name])) for name in names)
        timed = [f"{row['seconds_per_step']:.3g} ({row['times_plain']:.3g}x)"] if loss != "bicubic" else []
        noted = which == "best" and loss != "bicubic"  # others are some of the images
        assert row["note"] == ("selected on these images" if noted else "")
        assert table_of(out)[dataset, "standard", loss] == [
            *(f"{row[name]:.4f}" for name in names),
            *timed,
            *[row["note"]] * noted,
        ]
        if loss == "L1":
            assert scores["PSNR-Y"] == pytest.approx(slow_scores(net.eval(), folder, 4, "standard")[0], abs=2e-4)

    with open(run / "val.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    for line, (dataset, row) in zip(lines, rows):
        assert {"protocol", "checkpoint", "dataset", "files", "loss", *names} <= line.keys()
        assert (line["protocol"], line["dataset"], line["loss"]) == ("standard", dataset, row["loss"])
        assert line["files"] == str(row["files"]) and float(line["PSNR-Y"]) == row["PSNR-Y"]


def test_best_and_last_are_different_networks(run, capsys):
    rows = {}
    last = load_checkpoint(run / "last.pt")
    best = load_checkpoint(run / "best_L1.pt")
    best["sr_network"] = {name: value * 0.5 for name, value in best["sr_network"].items()}
    save_checkpoint(best, run / "best_L1.pt")
    for flags in ([], ["--best"]):
        val.main(["--modelpath", str(run), "--lpips", "--device", "cpu", *flags])
        rows[bool(flags)] = read_evaluations(run / "val.json")[-1]["rows"]
    assert rows[True][0] == rows[False][0]  # bicubic
    assert rows[True][2]["PSNR-Y"] != rows[False][2]["PSNR-Y"]
    assert last["step"] == 4


def test_defaults_are_the_newest_run_its_images_and_its_judge(run, images, capsys):
    shutil.copytree(run, run.parent / "newer")
    for path in run.glob("*.pt"):
        os.utime(path, (1000, 1000))
    val.main(["--best", "--device", "cpu"])
    out = capsys.readouterr().out
    assert out.startswith("run: checkpoints/newer (best)\n") and "cuts (4)" in out and "LPIPS-squeeze (judge)" in out
    assert (run.parent / "newer/val.json").exists() and not (run / "val.json").exists()


def test_only_some_losses_and_another_place_for_the_result(run, capsys):
    val.main(["--modelpath", str(run), "--losses", "L1", "--lpips", "--device", "cpu", "--out", "result.json"])
    (result,) = read_evaluations(Path("result.json"))
    assert [row["loss"] for row in result["rows"]] == ["bicubic", "L1"]
    assert not (run / "val.json").exists()


def test_bgr_is_marked_and_changes_lpips_alone(images, squeeze_file, workplace, capsys):
    results = []
    for flags in ([], ["--bgr"]):
        val.main(
            [
                "--model",
                "bicubic",
                "--folder",
                str(images),
                "--lpips",
                "squeeze",
                "--judge-weights",
                str(squeeze_file),
                "--device",
                "cpu",
                "--out",
                "r.json",
                *flags,
            ]
        )
        results.append(read_evaluations(Path("r.json"))[0]["rows"][0])
    assert results[0]["PSNR-Y"] == results[1]["PSNR-Y"]
    assert abs(results[0]["LPIPS-squeeze"] - results[1]["LPIPS-squeeze-BGR"]) > 1e-6


@pytest.mark.skipif(not DATASETS.is_dir(), reason="the benchmark images are not beside the repository")
@pytest.mark.parametrize("scale, set5, set14", [(2, 33.9569, 30.3250), (3, 30.6089, 27.5664), (4, 28.5944, 25.9904)])
def test_bicubic_rows_of_table_1(workplace, scale, set5, set14):
    folders = [str(DATASETS / name) for name in ("Set5", "Set14")]
    val.main(
        [
            "--model",
            "bicubic",
            "--scale",
            str(scale),
            "--folder",
            *folders,
            "--lpips",
            "--device",
            "cpu",
            "--out",
            "r.json",
        ]
    )
    entries = read_evaluations(Path("r.json"))
    assert {entry["protocol"] for entry in entries} == {"paper"}
    found = {entry["dataset"]: (row["files"], f"{row['PSNR-Y']:.4f}") for entry in entries for row in entry["rows"]}
    assert found == {"Set5": (5, f"{set5:.4f}"), "Set14": (14, f"{set14:.4f}")}


def test_bicubic_has_no_precision(images, capsys):
    with pytest.raises(SystemExit) as ended:
        val.main(["--model", "bicubic", "--folder", str(images), "--lpips", "--precision", "bf16", "--device", "cpu"])
    assert ended.value.code == 2 and "no --precision beside it" in capsys.readouterr().err


def test_networks_in_bf16_are_said_and_close(run, capsys):
    rows = {}
    for precision in ("fp32", "bf16"):
        val.main(
            ["--modelpath", str(run), "--losses", "L1", "--lpips", "tiny", "--device", "cpu", "--precision", precision]
        )
        assert (", networks in bf16\n" in capsys.readouterr().out) == (precision == "bf16")
        results = read_evaluations(run / "val.json")[-1]
        assert results["precision"] == precision
        rows[precision] = {row["loss"]: row for row in results["rows"]}
    assert rows["bf16"]["bicubic"] == rows["fp32"]["bicubic"]
    full, half = rows["fp32"]["L1"], rows["bf16"]["L1"]
    for name, most in {"PSNR-Y": 0.1, "SSIM-Y": 3e-3, "tiny": 5e-3}.items():
        assert 0 < abs(half[name] - full[name]) < most


@pytest.mark.parametrize("protocol", ["paper", "standard"])
def test_bicubic_and_the_metrics_are_fp32_whatever_the_networks(images, protocol):
    pairs, metrics = read_validation_set([images], 4, protocol), metrics_on("cpu", ["tiny"])
    net = BICUBIC[protocol](4)
    assert evaluate(net, pairs, metrics, protocol, precision="bf16") == evaluate(net, pairs, metrics, protocol)
