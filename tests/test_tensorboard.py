"""--tensorboard: its files hold what the log and the watched images hold, and a resumed run goes on in them."""

import importlib.util
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import configs
import train
from training import board, stop_signals

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def events_of(run: Path):
    """All that TensorBoard would show of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0}).Reload()


def scalars_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = events_of(run)
    return {tag: [(x.step, x.value) for x in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def logged(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from the log."""
    found = {}
    for entry in map(json.loads, (run / "log.jsonl").open()):
        named = {name: values for name, values in entry.items() if isinstance(values, dict) and "loss" in entry}
        scalars = {f"{name}/{loss}": value for name, values in named.items() for loss, value in values.items()}
        if "loss" in entry:
            scalars["learning_rate"] = entry["learning_rate"]
        if "validation" in entry:
            names = entry.keys() - {"step", "epoch", "validation"}
            scalars |= {f"{name}/{entry['validation']}": entry[name] for name in names}
        for tag, value in scalars.items():
            found.setdefault(tag, []).append((entry["step"], value))
    return found


def assert_equal(shown, expected):
    assert shown.keys() == expected.keys()
    for tag, points in expected.items():
        steps, values = zip(*points)
        assert [step for step, _ in shown[tag]] == list(steps), tag
        assert [value for _, value in shown[tag]] == pytest.approx(values, rel=1e-6), tag


def trained(*args) -> Path:
    run = train.Trainer(configs.load([*map(str, args)]))
    run.fit()
    return run.folder


@pytest.fixture(scope="module")
def whole(tiny_args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("board") / "run"
    return trained(*tiny_args, "--endepoch", 2, "--tensorboard", "--modelpath", folder)


def test_scalars_are_the_log_s(whole):
    shown = scalars_of(whole)
    assert {"loss/L1", "loss/L1+TLW", "WC/L1+TLW", "k/L1+TLW", "learning_rate", "PSNR-Y/L1"} <= shown.keys()
    assert len(shown["loss/L1"]) == 4 and len(shown["PSNR-Y/L1"]) == 2
    assert_equal(shown, logged(whole))


def test_pictures(whole, images):
    """SR crops and weights of one image at each validation, without --watch; no file of them."""
    events = events_of(whole)
    name = sorted(images.iterdir())[0].stem
    tags = {f"{name}/{key}" for key in ("hr", "bicubic", "L1/sr", "L1+TLW/sr", "L1+TLW/weights")}
    assert set(events.Tags()["images"]) == tags and not (whole / "watch").exists()
    assert [x.step for x in events.Images(f"{name}/L1/sr")] == [2, 4]


def test_pictures_are_the_watched_ones(tiny_args, workplace):
    import io

    from PIL import Image

    run = trained(*tiny_args, "--tensorboard", "--watch", 2, "--modelpath", "run")
    events = events_of(run)
    with np.load(run / "watch/0000.npz") as kept:
        keys = [key for key in kept if not key.endswith("/k")]
        assert set(events.Tags()["images"]) == set(keys) and len(keys) == 10
        for key in keys:
            (shown,) = events.Images(key)
            image = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)))
            np.testing.assert_array_equal(
                image if kept[key].ndim == 3 else image.reshape(*image.shape[:2], -1)[..., 0], kept[key]
            )


def test_a_resumed_run_goes_on_in_them(tiny_args, workplace):
    """Also from an earlier step than was shown: each step is there once."""
    first = trained(*tiny_args, "--endepoch", 2, "--tensorboard", "--keep-every", 2, "--modelpath", "run")
    shutil.copytree(first, "back")
    trained("--load", "--modelpath", "run", "--endepoch", 3)
    assert len(list(Path("run/tensorboard").iterdir())) == 2
    assert_equal(scalars_of(Path("run")), logged(Path("run")))
    assert [step for step, _ in scalars_of(Path("run"))["loss/L1"]] == [1, 2, 3, 4, 5, 6]
    trained("--load", "back/step_2.pt", "--endepoch", 2)
    assert_equal(scalars_of(Path("back")), logged(Path("back")))


def test_a_validation_that_was_cut_short_is_shown_once(tiny_args, workplace):
    run = train.Trainer(configs.load([*tiny_args, "--tensorboard", "--modelpath", "run"]))
    scores = run.report.scores

    def stop(*args):
        scores(*args)
        signal.raise_signal(signal.SIGTERM)

    run.report.scores = stop
    with pytest.raises(stop_signals.Stopped):
        run.fit()
    trained("--load", "--modelpath", "run")
    assert_equal(scalars_of(run.folder), logged(run.folder))


def test_begun_on_resuming(tiny_args, workplace):
    trained(*tiny_args, "--modelpath", "run")
    assert not Path("run/tensorboard").exists()
    trained("--load", "--modelpath", "run", "--endepoch", 2, "--tensorboard")
    assert [step for step, _ in scalars_of(Path("run"))["loss/L1"]] == [3, 4]


def test_not_installed_is_one_line(tiny_args, workplace, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "tensorboard" else find(name, *more)
    )
    with pytest.raises(SystemExit) as end:
        train.main([*tiny_args, "--tensorboard"])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and err.count("\n") == 1 and not list(workplace.iterdir())
    assert err == "train.py: error: --tensorboard: not installed here; pip install tensorboard, or leave it out\n"


def test_a_full_disk_ends_its_files_and_not_the_run(tiny_args, workplace, capsys, monkeypatch):
    from torch.utils.tensorboard import SummaryWriter

    add, calls = SummaryWriter.add_scalar, []

    def full(self, *args):
        calls.append(args)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        return add(self, *args)

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    run = trained(*tiny_args, "--tensorboard", "--modelpath", "run")
    notes = [x["note"] for x in map(json.loads, (run / "log.jsonl").open()) if "note" in x]
    assert notes == ["TensorBoard's files are not written from step 1 on ([Errno 28] No space left on device)"]
    assert len(calls) == 6 and capsys.readouterr().out.count(notes[0]) == 1
    assert board.FOLDER == "tensorboard" and max(x["step"] for x in map(json.loads, (run / "log.jsonl").open())) == 2
