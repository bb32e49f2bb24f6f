"""What a run takes that nobody named: no downloads; what it chooses `best` by; what it says of its settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import configs
import train
import val
from configs import Config
from runs.checkpoint import load_checkpoint
from training.schedule import stretched_schedule

ROOT = Path(__file__).parents[1]


@pytest.fixture
def asked(monkeypatch):
    """What somebody tried to download."""
    urls, refuse = [], torch.hub.load_state_dict_from_url
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **more: urls.append(url) or refuse(url))
    return urls


@pytest.fixture
def plain(images, workplace):
    """A run of L1 of two steps, with neither a judge nor a metric named."""
    return [
        *("--model", "EDSR", "--model-options", "blocks=1", "channels=8", "--losses", "L1", "--device", "cpu"),
        *("--trainpath", str(images), "--valpath", str(images), "--patch", "32", "--batchsize", "2", "--repeat", "1"),
        *("--endepoch", "1", "--modelpath", "run"),
    ]


def error(capsys, argv) -> str:
    with pytest.raises(SystemExit) as caught:
        train.main(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


# --- downloads ---


@pytest.mark.parametrize(
    "more", [["--judge", "tiny", "--losses", "L1", "MSE+TLW"], ["--judge", "ms-ssim"], []], ids=str
)
def test_nothing_is_downloaded_unasked(plain, more, asked, capsys):
    """Neither in the training nor at its end, nor by val.py; the run says in a line what it left out."""
    train.main([*plain, *more])
    out = capsys.readouterr().out
    assert asked == [] and ("LPIPS-vgg is left out" in out) == (not more)
    assert more or "--metrics vgg downloads them" in out
    val.main(["--modelpath", "run", "--best", "--device", "cpu"])
    out = capsys.readouterr().out
    assert asked == [] and out.count("left out: LPIPS") == 1 and "--metrics squeeze downloads them" in out


@pytest.mark.parametrize(
    "more, net, remedy",
    [
        (["--losses", "L1+TLW"], "vgg16", "or take --judge tiny, which needs none"),
        (
            ["--losses", "L1+TLW", "--judge", "lpips-alex-unweighted"],
            "alexnet",
            "or take --judge tiny, which needs none",
        ),
        (["--judge", "lpips-squeeze"], "squeezenet1_1", "or take --metrics tiny, which needs none"),
        (["--judge", "tiny", "--metrics", "tiny", "alex"], "alexnet", "or take --metrics tiny, which needs none"),
        (["--losses", "L1+DP", "--dp-extractors", "resnet50:layer2"], "resnet50", "--extractor-weights"),
    ],
    ids=str,
)
def test_what_is_named_is_fetched(plain, more, net, remedy, asked, capsys):
    assert remedy in error(capsys, [*plain, *more])
    assert [url.rsplit("/", 1)[1].split("-")[0] for url in asked] == [net] and not Path("run").exists()


def test_weights_at_hand_are_used(plain, squeeze_file, asked, capsys):
    """By val.py beside the judge's metric; files that no network uses are named by train.py."""
    train.main([*plain, "--judge", "tiny", "--judge-weights", str(squeeze_file)])
    out = capsys.readouterr().out
    assert out.count(f"{squeeze_file} is not used: it holds squeeze's weights") == 2  # at the beginning and at the end
    assert "LPIPS-squeeze" in out and "left out" not in out and asked == []


def test_weights_in_use_are_not_named(plain, squeeze_file, alex_file, capsys):
    files = ["--judge-weights", str(squeeze_file), "--extractor-weights", str(alex_file)]
    losses = ["--losses", "L1+TLW", "L1+DP", "--judge", "lpips-squeeze", "--dp-extractors", "alexnet:conv5"]
    train.main([*plain, *files, *losses])
    assert "is not used" not in capsys.readouterr().out


# --- best ---


def validations(loss: str) -> list[dict]:
    entries = map(json.loads, Path("run/log.jsonl").open())
    return [entry for entry in entries if entry.get("validation") == loss]


@pytest.mark.parametrize(
    "by, name, better", [("PSNR-Y", "PSNR-Y", max), ("ssim-y", "SSIM-Y", max), ("1-MS-SSIM", "1-MS-SSIM", min)]
)
def test_best_by_any_metric(plain, by, name, better):
    """The epoch of the best value, in the checkpoint and in what it was chosen by; the metrics disagree here."""
    more = ["--metrics", "tiny", "ms-ssim", "--endepoch", "6", "--best-by", by, "--learning-rate", "0.02"]
    train.main([*plain, *more])
    scores = [entry[name] for entry in validations("L1")]
    best = load_checkpoint(Path("run/best_L1.pt"))
    assert best["epoch"] == scores.index(better(scores)) and best["scores"][name] == better(scores)
    assert load_checkpoint(Path("run/last.pt"))["selection_criterion"][0] == by.lower().removeprefix("1-")


def test_best_by_is_the_first_metric_by_default(plain):
    train.main([*plain, "--metrics", "ms-ssim", "tiny"])
    saved = load_checkpoint(Path("run/last.pt"))
    assert saved["selection_criterion"][0] == "ms-ssim"
    assert saved["learners"]["L1"]["best"] == validations("L1")[0]["1-MS-SSIM"]


def test_best_by_another_metric_from_now_on(plain, capsys):
    train.main([*plain, "--judge", "tiny"])
    train.main(["--load", "run", "--endepoch", "2", "--best-by", "PSNR-Y"])
    assert "best is chosen by psnr-y" in capsys.readouterr().out
    assert load_checkpoint(Path("run/best_L1.pt"))["epoch"] == 1
    assert load_checkpoint(Path("run/last.pt"))["learners"]["L1"]["best"] == -validations("L1")[1]["PSNR-Y"]


@pytest.mark.parametrize("by", ["LPIPS-alex", "alex"])
def test_best_by_a_metric_that_is_not_measured(plain, by, capsys):
    words = f"--best-by {by}: expected one of PSNR-Y, SSIM-Y, tiny; or add --metrics tiny alex"
    assert words in error(capsys, [*plain, "--judge", "tiny", "--best-by", by])
    assert "expected one of PSNR-Y, SSIM-Y, tiny\n" in error(capsys, [*plain, "--judge", "tiny", "--best-by", "MOS"])


# --- the cosine ---


@pytest.mark.parametrize(
    "before, now, step, words",
    [
        (
            {"steps": 100},
            {"steps": 200},
            90,
            "at step 90 the learning rate jumps from 2.96 % of --learning-rate to 57.8 %",
        ),
        ({"endepoch": 10}, {"endepoch": 5}, 30, "the cosine goes over 50 steps instead of 100: at step 30"),
        ({"steps": 100, "startepoch": 2}, {"steps": 150, "startepoch": 2}, 50, "over 150 steps instead of 100"),
        ({"steps": 100}, {"steps": 100}, 90, None),
        ({"steps": 100}, {"endepoch": 10}, 90, None),  # the same end
        ({"steps": 100}, {"steps": 200}, 0, None),
        ({"steps": 100, "schedule": "constant"}, {"steps": 200, "schedule": "constant"}, 90, None),
    ],
)
def test_a_longer_cosine_is_said(before, now, step, words):
    def config(values):
        return Config(**{"schedule": "cosine", **{"steps": None, **values}})

    line = stretched_schedule(config(before), config(now), 10, step)
    assert (line is None) if words is None else (words in line)


def test_a_longer_cosine_is_said_on_resume(plain, capsys):
    train.main([*plain, "--judge", "tiny", "--schedule", "cosine", "--steps", "2"])
    train.main(["--load", "run", "--steps", "8"])
    out = capsys.readouterr().out
    assert out.count("the cosine goes over 8 steps instead of 2: at step 2 the learning rate jumps from 50 %") == 2


# --- noise ---


def test_pictures_without_a_home(tmp_path):
    """matplotlib says nothing of a home that it cannot write to."""
    environment = os.environ | {"HOME": "/dev/null/none", "MPLCONFIGDIR": "/dev/null/none", "TMPDIR": str(tmp_path)}
    code = "from training.figures import _figure, _png; print(len(_png(_figure((2, 2)))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert int(done.stdout) > 100 and done.stderr == ""


def test_settings_of_a_resumed_run_are_said_once(plain, squeeze_file):
    """In the log too: a run in two parts has the log of one in one."""
    train.main([*plain, "--judge", "tiny", "--judge-weights", str(squeeze_file)])
    train.main(["--load", "run", "--endepoch", "2"])
    assert Path("run/log.jsonl").read_text().count("is not used") == 1
    assert configs.read_yaml("run/config.yaml")["metrics"] == []
