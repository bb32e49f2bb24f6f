"""--watch: what a run keeps of some validation images at each validation."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import configs
import train
from data import PairedDataset
from losses import LOSSES
from models.bicubic import Bicubic
from runs.checkpoint import load_checkpoint
from training import watch


@pytest.fixture(scope="module")
def watched(tiny_args, tmp_path_factory):
    """The folder of a run of three epochs that watches two images."""
    folder = tmp_path_factory.mktemp("watch") / "run"
    run = train.Trainer(configs.load([*tiny_args, "--endepoch", "3", "--watch", "2", "--modelpath", str(folder)]))
    run.fit()
    return folder, run


def arrays(folder: Path, epoch: int) -> dict[str, np.ndarray]:
    with np.load(folder / "watch" / f"{epoch:04}.npz") as file:
        return dict(file)


def test_a_file_for_each_validation(watched):
    folder, run = watched
    assert sorted(path.name for path in (folder / "watch").iterdir()) == ["0000.npz", "0001.npz", "0002.npz"]
    names = run.experiment.validation.names[:2]
    keys = ("hr", "L1+TLW/sr", "L1+TLW/weights", "L1+TLW/k", "L1/sr")
    for epoch in range(3):
        found = arrays(folder, epoch)
        assert set(found) == {f"{name}/{key}" for name in names for key in keys}
        for name in names:
            k = found[f"{name}/L1+TLW/k"]
            assert k == pytest.approx(0.3 + 0.6 * (1 - np.exp(-epoch / 200)))
            weights = found[f"{name}/L1+TLW/weights"]
            assert weights.dtype == np.uint8 and weights.mean() / 255 == pytest.approx(k, abs=0.003)
            assert weights.shape == found[f"{name}/hr"].shape[:2]
    first, last = (arrays(folder, epoch)[f"{names[0]}/L1/sr"].astype(int) for epoch in (0, 2))
    assert np.abs(first - last).max() > 0


def test_the_last_is_what_the_networks_make(watched):
    folder, run = watched
    found = arrays(folder, 2)
    lr, hr = run.experiment.validation[0]
    name = run.experiment.validation.names[0]
    assert max(hr.shape[1:]) < watch.SIDE  # so the whole image
    np.testing.assert_array_equal(found[f"{name}/hr"], watch.levels(hr / 2 + 0.5).transpose(1, 2, 0))
    for learner in run.experiment.learners:
        sr = learner.net.eval()(lr[None])[0].detach()
        difference = found[f"{name}/{learner.name}/sr"] - (sr / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255
        assert np.abs(difference).max() < 0.51


@pytest.mark.parametrize("length", [10, 48, 100, 481])
def test_the_middle(length):
    seen, kept, hr = watch.middle(length, 4)
    lr = torch.arange(length).repeat_interleave(4)
    part = torch.arange(length)[seen].repeat_interleave(4)[kept]
    assert torch.equal(part, lr[hr]) and len(part) == min(4 * length, watch.SIDE)
    assert abs((hr.start + hr.stop) / 2 - 2 * length) <= 4


def test_large_images_are_cut():
    """What is kept of sr is of the same place as hr."""
    validation = PairedDataset("skimage:coffee", 4, 12, progress=False)
    kept = watch.Watch(validation, 5)
    ((lr, hr, _),) = kept.parts.values()
    assert hr.shape == (1, 3, 192, 192) and lr.shape == (1, 3, 80, 80)
    net, loss = Bicubic(4), LOSSES["L1"](None, None)
    learner = SimpleNamespace(name="L1", result=net, loss=loss, device=torch.device("cpu"))
    found = np.load(io.BytesIO(kept.record([learner], 0)))
    hr, sr = (found[f"coffee/{key}"].astype(float) for key in ("hr", "L1/sr"))
    assert sr.shape == (192, 192, 3) and np.abs(hr - sr).mean() < 8 < np.abs(hr - np.roll(sr, 16, 0)).mean()


def test_resumed_or_not_watched_it_is_the_same_run(watched, tiny_args, assert_same, tmp_path):
    folder, _ = watched
    parts, blind = tmp_path / "parts", tmp_path / "blind"
    train.Trainer(configs.load([*tiny_args, "--endepoch", "2", "--watch", "2", "--modelpath", str(parts)])).fit()
    train.Trainer(configs.load(["--load", "--modelpath", str(parts), "--endepoch", "3"])).fit()
    for epoch in range(3):
        name = f"watch/{epoch:04}.npz"
        assert (parts / name).read_bytes() == (folder / name).read_bytes()
    train.Trainer(configs.load([*tiny_args, "--endepoch", "3", "--modelpath", str(blind)])).fit()
    assert not (blind / "watch").exists()
    assert_same(load_checkpoint(blind / "last.pt"), load_checkpoint(folder / "last.pt"))
