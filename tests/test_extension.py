"""A new network, loss, metric or schedule is a class or function and its entry; a wrong one is refused in one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import configs
import export
import train
import val
from losses import LOSSES, Loss
from losses.base import check_loss
from metrics.base import PerceptualMetric, check_metric
from metrics.judges import JUDGES, METRICS, build_metric
from models import SR_MODELS, build_network
from models.base import SRNetwork
from runs.checkpoint import SR_NETWORK, load_checkpoint
from runs.weights_file import import_file


class Toy(SRNetwork):
    """FSRCNN-like: two convolutions, then a pixel shuffle."""

    def __init__(self, scale, channels=4):
        super().__init__(scale, feature_channels=channels, receptive_radius=2)
        self.body = nn.Conv2d(3, channels, 3, padding=1)
        self.tail = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)

    def forward_features(self, lr):
        return self.body(lr).tanh()

    def forward_head(self, lr, features):
        return F.pixel_shuffle(self.tail(features), self.scale)


class Charbonnier(Loss):
    """Lai et al., LapSRN, CVPR 2017: mean of sqrt((sr - hr)^2 + eps^2), and a share of the judge's distance."""

    needs_judge = True

    def forward(self, sr, target, epoch, features=None):
        return ((sr - target.hr).square() + 1e-6).sqrt().mean() + 0.1 * target.distance(sr).mean()

    def log_scalars(self, helper_loss, epoch):
        return {"eps": 1e-3}


class Gradients(PerceptualMetric):
    """Mean absolute difference of the images' horizontal gradients."""

    def __init__(self):
        super().__init__("GRAD", min_size=2)

    def forward(self, a, b):
        return (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean(dim=(-3, -2, -1))


@pytest.fixture
def registered(monkeypatch):
    """The entries that would stand in models/__init__.py, losses/__init__.py, metrics/judges.py, configs/schedules.py."""
    monkeypatch.setitem(SR_MODELS, "Toy", Toy)
    monkeypatch.setitem(LOSSES, "Charbonnier", lambda settings, net: Charbonnier())
    monkeypatch.setitem(METRICS, "grad", lambda **ignored: Gradients())
    monkeypatch.setitem(JUDGES, "grad", METRICS["grad"])  # in the source OTHER_METRICS brings both
    monkeypatch.setitem(configs.SCHEDULES, "linear", lambda config, epoch, step, total_steps: 1 - step / total_steps)


@pytest.fixture
def toy_args(images, workplace, registered):
    data = ["--trainpath", str(images), "--valpath", str(images), "--patch", "32", "--batchsize", "2", "--repeat", "1"]
    return [
        *("--model", "Toy", "--model-options", "channels=5", "--losses", "Charbonnier", "L1+TLW", "--judge", "grad"),
        *("--metrics", "grad", "tiny", "--endepoch", "2", "--log-every", "1", "--device", "cpu", *data),
    ]


def test_it_trains_resumes_and_evaluates(toy_args, same_files):
    train.main([*toy_args, "--modelpath", "whole"])
    train.main([*toy_args, "--modelpath", "parts", "--endepoch", "1"])
    train.main(["--load", "--modelpath", "parts", "--endepoch", "2"])
    same_files(Path("whole"), Path("parts"))
    entries = [json.loads(line) for line in Path("whole/log.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    assert all(0 < entry["loss"]["Charbonnier"] < 10 and entry["eps"] == {"Charbonnier": 1e-3} for entry in steps)
    assert steps[0]["loss"] != steps[-1]["loss"]

    val.main(["--modelpath", "whole", "--best", "--metrics", "grad", "ms-ssim", "--device", "cpu", "--out", "val.json"])
    (evaluation,) = json.loads(Path("val.json").read_text())["evaluations"]
    rows = {row["loss"]: row for row in evaluation["rows"]}
    assert rows.keys() == {"bicubic", "Charbonnier", "L1+TLW"}
    assert all(0 < row["GRAD"] < 1 for row in rows.values())
    assert all(len(row["per_image"]) == 4 and "GRAD" in row["per_image"]["coffee.png"] for row in rows.values())


def test_a_schedule_is_a_function_and_an_entry(toy_args, capsys):
    flags = ("--schedule", "linear", "--learning-rate", "0.1", "--losses", "Charbonnier", "--modelpath", "run")
    train.main([*toy_args, *flags, "--steps", "2"])
    rates = [json.loads(line).get("learning_rate") for line in Path("run/log.jsonl").read_text().splitlines()]
    assert list(filter(None, rates)) == pytest.approx([0.1, 0.05])
    train.main(["--load", "run", "--steps", "8"])  # whatever depends on the length is said to be stretched
    assert "the linear goes over 8 steps instead of 2: at step 2 the learning rate jumps" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        train.main([*toy_args, "--schedule", "lin"])


NEW = {  # a new file: its content; the file of the dictionary, its first line, the import and the entry
    "models/toy.py": (
        """from .edsr import EDSR


class Toy(EDSR):
    def __init__(self, scale, channels=4):
        super().__init__(scale, channels=channels, blocks=1)
""",
        ("models/__init__.py", "SR_MODELS", "from .toy import Toy", '"Toy": Toy,'),
    ),
    "losses/charbonnier.py": (
        """from .base import Loss


class Charbonnier(Loss):
    def forward(self, sr, target, epoch, features=None):
        return ((sr - target.hr).square() + 1e-6).sqrt().mean()
""",
        (
            "losses/__init__.py",
            "LOSSES",
            "from .charbonnier import Charbonnier",
            '"Charbonnier": lambda settings, net: Charbonnier(),',
        ),
    ),
    "metrics/grad.py": (
        """from .base import PerceptualMetric


class Gradients(PerceptualMetric):
    def __init__(self):
        super().__init__("GRAD", min_size=2)

    def forward(self, a, b):
        return (a.diff(dim=-1) - b.diff(dim=-1)).abs().mean(dim=(-3, -2, -1))
""",
        ("metrics/judges.py", "OTHER_METRICS", "from .grad import Gradients", '"grad": lambda **ignored: Gradients(),'),
    ),
}
BUILD = """
import configs
from losses import build_loss
from metrics.judges import build_judge, build_metric
from models import build_network

config = configs.load(["--model", "Toy", "--model-options", "channels=3", "--losses", "Charbonnier", "--judge", "grad"])
configs.check_names(config)
net = build_network(config.model, config.scale, config.model_options)
print(net.feature_channels, build_loss("Charbonnier", config, net), build_judge("grad").name, build_metric("grad").name)
print(configs.catalogue.model_options("Toy"))
"""


def test_one_file_its_import_and_its_entry_are_enough(tmp_path):
    """In a copy of the source, since --help and the check of names read it without importing it."""
    root = Path(__file__).parents[1]
    for name in ("configs", "losses", "metrics", "models"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file, (content, (table, name, line, entry)) in NEW.items():
        (tmp_path / file).write_text(content)
        text = (tmp_path / table).read_text()
        opening = re.search(rf"^{name}: .* = \{{.*\n", text, re.M)[0]
        text = text.replace(opening, f"{opening}    {entry}\n").replace(
            "from .base import", f"{line}\nfrom .base import", 1
        )
        (tmp_path / table).write_text(text)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3 Charbonnier() GRAD GRAD", "{'channels': 4}"]


def test_tables_mark_it_as_the_judge(toy_args, capsys):
    train.main([*toy_args, "--modelpath", "run", "--endepoch", "1", "--losses", "Charbonnier"])
    assert "GRAD (judge)" in capsys.readouterr().out


def test_it_exports(toy_args, assert_same):
    train.main([*toy_args, "--modelpath", "run", "--endepoch", "1"])
    export.main([*"--modelpath run --loss Charbonnier --to safetensors -o net.safetensors".split()])
    imported = import_file(Path("net.safetensors"))
    assert (imported.model, imported.scale, imported.options) == ("Toy", 4, {"channels": 5})
    trained = load_checkpoint(Path("run/last.pt"))["learners"]["Charbonnier"][SR_NETWORK]
    assert_same(dict(sorted(imported.state_dict.items())), dict(sorted(trained.items())))


def test_it_runs_in_tiles():
    from models.ops.tiled import TiledUpscaler

    net, lr = Toy(3).eval(), torch.rand(1, 3, 70, 50)
    with torch.no_grad():
        torch.testing.assert_close(TiledUpscaler(net, 200_000)(lr), net(lr))


class NoHead(SRNetwork):
    def __init__(self, scale):
        super().__init__(scale, feature_channels=3)

    def forward_features(self, lr):
        return lr


class TooSmall(Toy):
    def forward_head(self, lr, features):
        return features[:, :3]


class OtherFeatures(Toy):
    def __init__(self, scale):
        super().__init__(scale)
        self.feature_channels = 7


NETWORKS = {
    "a module that is no SRNetwork": (lambda scale: nn.Identity(), "Identity is not a network; expected a subclass of"),
    "no forward_head": (NoHead, "abstract method '?forward_head"),
    "an image of another size": (TooSmall, r"sr of shape \(1, 3, 6, 8\) for lr of .* expected \(1, 3, 12, 16\)"),
    "other features than it says": (OtherFeatures, r"features of shape \(1, 4, 6, 8\) .* expected \(1, 7, 6, 8\)"),
    "an error of its own": (lambda scale: 1 / 0, "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("build, words", NETWORKS.values(), ids=NETWORKS)
def test_a_wrong_network_is_refused(monkeypatch, build, words):
    monkeypatch.setitem(SR_MODELS, "Wrong", build)
    with pytest.raises(
        ValueError, match=rf"^Wrong cannot be built \(.*{words}.*\); fix SR_MODELS\['Wrong'\] in models/__init__.py$"
    ):
        build_network("Wrong", 2)


class NoForward(Loss):
    pass


class OtherForward(Loss):
    def forward(self, sr, hr):
        return (sr - hr).abs().mean()


WRONG_LOSSES = {
    "a module that is no Loss": (nn.L1Loss, "L1Loss is not a loss; expected a subclass of Loss, see losses/base.py"),
    "no forward": (NoForward, r"NoForward has no forward; expected forward\(sr, target, epoch, features\)"),
    "another forward": (OtherForward, "OtherForward.forward takes sr, hr; expected sr, target, epoch, features"),
}


@pytest.mark.parametrize("build, words", WRONG_LOSSES.values(), ids=WRONG_LOSSES)
def test_a_wrong_loss_is_refused(build, words, toy_args, monkeypatch, capsys):
    with pytest.raises(ValueError, match=f"^{words}$"):
        check_loss(build())
    monkeypatch.setitem(LOSSES, "Wrong", lambda settings, net: build())
    with pytest.raises(SystemExit, match="2"):
        train.main([*toy_args, "--losses", "Wrong"])
    assert re.match(
        rf"train.py: error: --losses Wrong: {words}; fix LOSSES\['Wrong'\] in losses/__init__.py$",
        capsys.readouterr().err,
    )


def test_a_loss_that_is_no_scalar_is_refused(toy_args, monkeypatch):
    class Map(Loss):
        def forward(self, sr, target, epoch, features=None):
            return (sr - target.hr).abs()

    monkeypatch.setitem(LOSSES, "Map", lambda settings, net: Map())
    with pytest.raises(ValueError, match=r"^Map gives a loss of shape \(2, 3, 32, 32\); expected a scalar"):
        train.main([*toy_args, "--losses", "Map"])


class Scalar(Gradients):
    def forward(self, a, b):
        return super().forward(a, b).mean()


class OtherName(Gradients):
    def __init__(self):
        super().__init__()
        self.name = "slopes"


WRONG_METRICS = {
    "a module that is no PerceptualMetric": (nn.L1Loss, "is a L1Loss; expected a subclass of PerceptualMetric"),
    "one number for a batch": (Scalar, "metric grad is a Scalar that gives"),
    "another name": (OtherName, "metric grad calls itself slopes; expected grad in any case"),
}


@pytest.mark.parametrize("build, words", WRONG_METRICS.values(), ids=WRONG_METRICS)
def test_a_wrong_metric_is_refused(build, words, registered, monkeypatch):
    monkeypatch.setitem(METRICS, "grad", lambda weights=(), **options: build())
    with pytest.raises(ValueError, match=words):
        build_metric("grad")


def test_a_metric_by_forward_alone_is_measured_as_any():
    metric = check_metric(Gradients(), "grad")
    images, references = torch.rand(3, 2, 3, 5, 6), torch.rand(2, 3, 5, 6)
    distance = metric.with_reference(references)
    expected = torch.stack([metric(some, references) for some in images])
    torch.testing.assert_close(distance(images), expected, rtol=0, atol=0)
    assert distance.nbytes == references.nbytes
