"""What can happen to the data of a run under way: images that go bad, processes that load them and die."""

import json
import multiprocessing
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import configs
import train
from data import ImageReadError, PairedDataset, read_rgb
from runs.checkpoint import load_checkpoint


@pytest.fixture
def args(args, images, monkeypatch):
    """One learner, three epochs of four steps, on images of our own that are read again for each draw."""
    monkeypatch.setitem(PairedDataset.__init__.__kwdefaults__, "cache_bytes", 0)
    watch = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(watch, "__defaults__", (0.1,))  # seconds until a dead process is looked for, else 5
    shutil.copytree(images, "mine")
    return [*args, "--losses", "L1", "--endepoch", "3", "--trainpath", "mine", "--modelpath", "run"]


@pytest.fixture(scope="module")
def whole(tiny_args, tmp_path_factory) -> Path:
    """The run to which nothing happens."""
    folder = tmp_path_factory.mktemp("whole")
    make_run([*tiny_args, "--repeat", "2", "--losses", "L1", "--endepoch", "3", "--modelpath", str(folder)]).fit()
    return folder


def make_run(args) -> train.Trainer:
    return train.Trainer(configs.load([*args]))


def torn() -> None:
    path = Path("mine/coffee.png")
    path.write_bytes(path.read_bytes()[:900])


def gone() -> None:
    os.remove("mine/coffee.png")


def another_of_its_size() -> None:
    path = Path("mine/coffee.png")
    Image.fromarray(read_rgb(path)[:, ::-1].copy()).save(path)


@pytest.mark.parametrize("workers, spoil", [(0, torn), (2, torn), (0, another_of_its_size), (0, gone)])
def test_an_image_that_goes_bad_stops_the_run(args, images, whole, workers, spoil, at_step, same_files, capsys):
    """Where it can go on."""
    at_step(2, spoil)
    with pytest.raises(SystemExit) as end:
        train.main([*args, "--workers", str(workers)])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and err.count("\n") == 1 and "mine/coffee.png" in err and "put it back" in err
    assert f"to resume: python {train.__file__} --load --modelpath run" in out
    step = load_checkpoint(Path("run/last.pt"))["step"]
    assert 2 <= step < 12
    shutil.copy(images / "coffee.png", "mine")
    run = make_run(["--load", "--modelpath", "run"])
    assert run.state.step == step
    run.fit()
    same_files(whole, Path("run"))


def test_a_bad_image_is_replaced_by_the_next_where_bad_ones_are_skipped(args, same_files, capsys):
    """Whoever loads; named once, in the log too."""
    clean = Path("mine/coffee.png").read_bytes()
    for workers in ("0", "2"):
        Path("mine/coffee.png").write_bytes(clean)
        run = make_run([*args, "--bad-images", "skip", "--workers", workers, "--modelpath", workers])
        torn()
        run.fit()
        (note,) = run.report.summary()
        assert note.startswith("left out: cannot read image mine/coffee.png: ")
        assert capsys.readouterr().out.count("left out from step") == 1
        entries = [json.loads(line) for line in Path(workers, "log.jsonl").read_text().splitlines()]
        assert sum("coffee.png" in entry.get("left_out", "") for entry in entries) == 1
    same_files(Path("0"), Path("2"))
    lr, hr = run.experiment.patches[0, 2]
    found = train.load_batches(run.experiment.patches, [[(0, 1)]], substitute=True)
    assert torch.equal(next(found)[1][0], hr)


def brighten(folder: str) -> None:
    for path in Path(folder).iterdir():
        Image.fromarray(read_rgb(path) // 4 + 192).save(path)


def test_bright_images_are_images_like_others(args, images, at_step, same_files):
    """As many as a judge in a loop of one's own would call wrong; going on among them too."""
    shutil.copytree(images, "bright")
    brighten("bright")
    args = [*args, "--trainpath", "bright", "--valpath", "bright", "--losses", "L1+TLW", "--endepoch", "5"]
    with warnings.catch_warnings(action="error", category=UserWarning):
        make_run([*args, "--modelpath", "whole"]).fit()
        at_step(9, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            train.main(args)
        make_run(["--load", "--modelpath", "run"]).fit()
    same_files(Path("whole"), Path("run"))


def test_going_on_with_other_images(args, images, capsys):
    """Another number of them is refused, even where an epoch has as many steps; others are said."""
    run = make_run([*args, "--steps", "1", "--repeat", "1", "--batchsize", "3"])
    run.fit()
    names = sorted(path.name for path in Path("mine").iterdir())
    more = ["--load", "--modelpath", "run", "--steps", "2"]
    shutil.copy(Path("mine", names[0]), "mine/zebra.png")
    with pytest.raises(
        ValueError, match=f"run/last.pt: was trained on {len(names)} images, these are {len(names) + 1}; "
    ):
        make_run(more)
    Path("mine/zebra.png").unlink()
    another_of_its_size()
    again = make_run(more)
    wanted = f"1 of {len(names)} training images are not those of last.pt"
    assert wanted in capsys.readouterr().out and wanted in again.report.summary()
    again.fit()
    entries = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert sum(entry.get("note") == wanted for entry in entries) == 1
    shutil.copy(images / "coffee.png", "mine")


def test_what_is_left_out_from_the_beginning_is_logged(args, capsys):
    """Damaged images by name, small ones by number."""
    torn()
    Image.new("RGB", (20, 20)).save("mine/small.png")
    make_run([*args, "--steps", "1", "--bad-images", "skip", "--skip-small"]).fit()
    text = Path("run/log.jsonl").read_text()
    assert text.count('"left_out": "cannot read image mine/coffee.png') == 1
    assert text.count('"note": "1 of 4 images are smaller than --patch') == 1
    assert capsys.readouterr().out.count("left out: cannot read image mine/coffee.png") == 1


def test_no_image_left(args, workplace):
    run = make_run([*args, "--bad-images", "skip"])
    for path in Path("mine").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ImageReadError, match="cannot read image mine/.*: the file is empty; it is not what it was"):
        run.fit()
    assert load_checkpoint(Path("run/last.pt"))["step"] == 0


def test_a_validation_image_that_goes_bad(args, images, at_step, same_files):
    """It was read before the first step, and is kept."""
    shutil.copytree(images, "others")
    args = [*args, "--valpath", "others", "--endepoch", "2"]
    make_run([*args, "--modelpath", "whole"]).fit()
    at_step(6, lambda: Path("others/rocket.png").write_bytes(b""))
    make_run(args).fit()
    same_files(Path("whole"), Path("run"))


def test_a_process_that_loads_is_killed(args, whole, at_step, same_files, capsys):
    """As the system does where memory runs out."""
    at_step(2, lambda: [os.kill(child.pid, signal.SIGKILL) for child in multiprocessing.active_children()[:1]])
    with pytest.raises(SystemExit) as end:
        train.main([*args, "--workers", "2"])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and err.count("\n") == 1 and "take fewer --workers, or 0" in err
    assert f"to resume: python {train.__file__} --load --modelpath run" in out
    assert 2 <= load_checkpoint(Path("run/last.pt"))["step"] < 12
    make_run(["--load", "--modelpath", "run", "--workers", "0"]).fit()
    same_files(whole, Path("run"))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()], ids=repr)
def test_a_process_that_is_killed_while_it_hands_over_a_batch(args, error, monkeypatch):
    """Then it is the connection to it that fails."""
    run = make_run([*args, "--workers", "1"])
    loader = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    deliver, left = loader._try_get_data, [3]

    def fails(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            raise error
        return deliver(*arguments, **options)

    monkeypatch.setattr(loader, "_try_get_data", fails)
    with pytest.raises(ImageReadError, match="has died .*take fewer --workers, or 0") as caught:
        run.fit()
    assert caught.traceback and multiprocessing.active_children() == []  # those that live end
    assert load_checkpoint(Path("run/last.pt"))["step"] == run.state.step > 0
