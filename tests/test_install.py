"""The five libraries installed as `tlw`, from the built wheel, in a project that has packages of the same names."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LIBRARIES = ("configs", "data", "losses", "metrics", "models")

# The loop of the README with a judge of each kind, after the project's own packages of the same names.
SCRIPT = """
import sys

import data, losses, metrics, models, utils

assert models.OURS and losses.OURS and utils.OURS
import warnings

import lpips
import torch
from torch import nn
from torch.optim import Adam

from tlw.losses import TLW, Target
from tlw.metrics import LPIPS, Tiny

assert "torchvision" in sys.modules and LPIPS.__module__ == "tlw.metrics.perceptual"
warnings.simplefilter("ignore")

JUDGES = {
    "tiny": Tiny(),
    "the lpips package's own": lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False),
    "any callable": lambda a, b: (a - b).abs().mean((1, 2, 3)),
}
for name, judge in JUDGES.items():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    tlw = TLW("L1")
    opt, helper_opt = Adam(net.parameters(), 1e-2), Adam(tlw.helper.parameters(), 1e-4)
    before = [p.clone() for p in (*net.parameters(), *tlw.helper.parameters())]
    for epoch in range(2):
        lr, hr = torch.rand(2, 3, 20, 20) * 2 - 1, torch.rand(2, 3, 40, 40) * 2 - 1
        sr, target = net(lr), Target.judged_by(judge, hr)
        for o, loss in ((helper_opt, tlw.helper_loss), (opt, tlw)):
            o.zero_grad()
            value = loss(sr, target, epoch)
            assert value.shape == () and value.isfinite()
            value.backward()
            o.step()
    after = (*net.parameters(), *tlw.helper.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(after, before)), name
    print("trained with", name)

from tlw.losses import LOSSES
from tlw.metrics.judges import JUDGES, build_judge
from tlw.models import SR_MODELS, build_network

build_judge("ms-ssim")
assert build_network("EDSR", 2)(lr).shape == (2, 3, 40, 40) and "L1+UDL" in LOSSES

# Settings and data, whose files are in packages.
import tlw.configs
from tlw.configs import Config
from tlw.data import PairedDataset, PatchDataset, load_batches
from tlw.data.photographs import photographs
from importlib.resources import files

assert all(path.exists() for path in photographs("skimage:coffee"))
settings = tlw.configs.read_yaml(files("tlw.configs") / "quickstart.yaml")
assert isinstance(tlw.configs.from_mapping(settings), Config)
pairs = PairedDataset(["skimage:coffee"], 4, 4)
assert pairs[0][0].shape[0] == 3
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree, so that nothing is left in it."""
    pytest.importorskip("setuptools", "77", reason="building a wheel needs setuptools 77 or later")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in LIBRARIES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--quiet", "-w", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The python of a fresh virtual environment with the wheel; torch and the like are those of this environment."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, str(wheel)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Another project, with packages of our names."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("models", "losses", "data", "metrics", "configs", "utils"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("OURS = True\n")
    return folder


def test_the_wheel_holds_the_libraries_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path for name in LIBRARIES for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".yaml")}
    expected = {f"tlw/{path.relative_to(ROOT).as_posix()}" for path in files} | {"tlw/metrics/tiny.safetensors"}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_loop_trains_beside_packages_of_the_same_names(environment, project):
    (project / "script.py").write_text(SCRIPT)
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([environment, "script.py"], cwd=project, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"trained with {x}" for x in ("tiny", "the lpips package's own", "any callable")
    ]


def test_what_the_libraries_import_is_what_the_wheel_requires():
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage"}
    required = {re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["dependencies"]}
    text = "\n".join(path.read_text() for name in LIBRARIES for path in (ROOT / name).rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) ([a-zA-Z]\w*)", text, re.M)) - sys.stdlib_module_names
    optional = {"spandrel", "onnx", "onnxruntime"} & imported  # asked for by a sentence where it is needed
    # Of skimage the photographs are read.
    assert {modules.get(name, name) for name in required} - {"skimage"} == imported - optional
    assert set(PROJECT["project"]["dependencies"]) <= set((ROOT / "requirements.txt").read_text().split())
