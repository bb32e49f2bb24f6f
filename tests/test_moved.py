"""A run is known by its images, not by where they lie: resumed from elsewhere, evaluated from elsewhere, moved."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import configs
import train
import val
from data import read_rgb
from runs.output import script_command
from training import distributed

ROOT = Path(train.__file__).parent


def make_run(*words) -> train.Trainer:
    return train.Trainer(configs.load([*map(str, words)]))


def set_up(images: Path, folder: Path) -> None:
    """Training images in two folders, validation images and the LR of all."""
    for number, path in enumerate(sorted(images.iterdir())):
        for name in ("one" if number < 2 else "two", "valid"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / name)
            rgb = Image.fromarray(read_rgb(path))
            (folder / f"lr_{name}").mkdir(exist_ok=True)
            rgb.resize((rgb.width // 4, rgb.height // 4)).save(folder / f"lr_{name}" / f"{path.stem}_LR.png")


PLACES = "--trainpath one/ ./two --lrpath lr_one lr_two/ --valpath valid// --vallrpath lr_valid".split()


@pytest.fixture(scope="module")
def place(images, tiny_args, tmp_path_factory):
    """A working folder with its data, a whole run of four epochs of two steps, and one that stopped after two."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        set_up(images, Path())
        args = [*tiny_args, "--losses", "L1", *PLACES]
        make_run(*args, "--modelpath", "whole", "--endepoch", "4").fit()
        make_run(*args, "--modelpath", "part", "--endepoch", "2").fit()
    return folder


@pytest.fixture
def part(place, tmp_path) -> Path:
    """A copy of the run that was stopped."""
    return Path(shutil.copytree(place / "part", tmp_path / "run"))


def test_paths_are_stored_absolute(place):
    saved = configs.from_mapping(configs.read_yaml(place / "part/config.yaml"))
    assert saved.trainpath == (str(place / "one"), str(place / "two")) and saved.valpath == (str(place / "valid"),)
    assert saved.lrpath == (str(place / "lr_one"), str(place / "lr_two")) and saved.vallrpath == (
        str(place / "lr_valid"),
    )
    assert all(Path(path).is_absolute() for path in saved.judge_weights) and saved.modelpath is None
    default = configs.absolute_paths(configs.Config())
    assert default == configs.Config() and configs.absolute_paths(default) == default
    assert configs.absolute_paths(configs.Config(cache="none")).cache == "none"
    assert configs.absolute_paths(configs.Config(cache="c")).cache == os.path.abspath("c")


@pytest.mark.parametrize(
    "where", ["the same folder", "another folder", "without the flags", "moved", "the other way round"]
)
def test_a_run_goes_on_from_anywhere(place, part, tmp_path, monkeypatch, capsys, same_files, where):
    """Bit by bit as if nothing had happened."""
    words = {
        "the same folder": ["--trainpath", "two/../one", "two", "--lrpath", "lr_one/", "lr_two"],
        "another folder": ["--trainpath", place / "one", place / "two"],
        "without the flags": [],
        "moved": ["--trainpath", "on/one", "on/two", "--lrpath", "on/lr_one", "on/lr_two", "--valpath", "on/valid"],
        "the other way round": ["--trainpath", "on/two", "on/one", "--lrpath", "on/lr_two", "on/lr_one"],
    }[where]
    monkeypatch.chdir(place if where == "the same folder" else tmp_path)
    shutil.copytree(place, "on", ignore=shutil.ignore_patterns("part", "whole")) if "on/one" in words else None
    run = make_run("--load", "--modelpath", part, *words, "--endepoch", "4")
    assert run.state.step == 4
    run.fit()
    out = capsys.readouterr().out
    assert "best is chosen by" not in out and "not those of" not in out
    same_files(place / "whole", part)


def test_data_that_is_gone_is_asked_for(place, part, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (part / "config.yaml").read_text()
    for name, flags in (("one", "--trainpath DIR and --lrpath DIR"), ("lr_valid", "--valpath DIR and --vallrpath DIR")):
        (part / "config.yaml").write_text(text.replace(f"{place / name}\n", f"/nowhere/{name}\n"))
        words = f"folder /nowhere/{name} does not exist; .*; if the images have moved, name their folders: {flags}$"
        with pytest.raises(ValueError, match=words):
            make_run("--load", "--modelpath", part, "--endepoch", "4")


def test_other_images_are_not_taken_for_the_runs(place, part, tmp_path, monkeypatch):
    """As many of them, under the same names."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        for path in (place / name).iterdir():
            Path(name).mkdir(exist_ok=True)
            Image.fromarray(255 - read_rgb(path)).save(Path(name, path.name))
    with pytest.raises(
        ValueError, match="run/last.pt: 4 of these 4 training images are not of this run; name .*--trainpath"
    ):
        make_run("--load", "--modelpath", part, "--trainpath", "one", "two", "--endepoch", "4")


def test_other_validation_images_begin_best_anew(place, part, tmp_path, monkeypatch, capsys):
    """And the same ones elsewhere do not, as test_a_run_goes_on_from_anywhere has seen."""
    monkeypatch.chdir(place)
    make_run("--load", "--modelpath", part, "--valpath", "one", "--vallrpath", "lr_one", "--endepoch", "4")
    assert "best is chosen by squeeze paper 2 images of checksum" in capsys.readouterr().out


def test_val_finds_the_runs_images_from_anywhere(place, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    val.main(["--modelpath", str(part), "--metrics", "--device", "cpu"])
    assert "passed over" not in capsys.readouterr().out
    (place / "valid/photo.heic").touch()
    val.main(["--modelpath", str(part), "--metrics", "--device", "cpu"])
    (place / "valid/photo.heic").unlink()
    assert capsys.readouterr().out.count(f"passed over in {place / 'valid'}: 1 .heic\n") == 1
    entry = json.loads((part / "val.json").read_text())["evaluations"][-1]
    assert entry["dataset"] == "valid" and [row["files"] for row in entry["rows"]] == [4, 4]


def test_val_asks_for_the_runs_images_if_they_are_gone(part, monkeypatch, capsys):
    text = (part / "config.yaml").read_text()
    (part / "config.yaml").write_text(re.sub(r"(?<=valpath:\n- ).*", "/nowhere/valid", text))
    with pytest.raises(SystemExit):
        val.main(["--modelpath", str(part), "--metrics", "--device", "cpu"])
    err = capsys.readouterr().err
    assert err == (
        "val.py: error: --folder /nowhere/valid: expected the run's validation images there; say where they are now\n"
    )


def test_lr_names_by_a_template(place, tiny_args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "one", "one")
    for path in (place / "lr_one").iterdir():
        Path("lr").mkdir(exist_ok=True)
        shutil.copy(path, f"lr/small-{path.stem.removesuffix('_LR')}.png")
    args = [*tiny_args, "--losses", "L1", "--trainpath", "one", "--lrpath", "lr", "--steps", "1", "--modelpath", "run"]
    with pytest.raises(ValueError, match="has no LR partner; .*--lr-template"):
        make_run(*args)
    args += ["--valpath", "one", "--vallrpath", "lr", "--lr-template", "small-{}"]
    run = make_run(*args)
    assert len(run.experiment.patches) == 2
    run.fit()
    val.main(["--modelpath", "run", "--metrics", "--device", "cpu"])


# --- what is printed, and how long it took ---


def test_printed_commands_work_where_they_were_printed(tmp_path, monkeypatch):
    words = ["--modelpath", "my run"]
    monkeypatch.chdir(ROOT)
    assert script_command("val.py", *words) == "python val.py --modelpath 'my run'"
    for folder in (tmp_path / "a b", ROOT / "docs"):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        command = script_command("val.py", *words)
        assert shlex.split(command) == ["python", str(ROOT / "val.py"), *words]
    (tmp_path / "val.py").write_text("another's")
    monkeypatch.chdir(tmp_path)
    assert shlex.split(script_command("val.py"))[1] == str(ROOT / "val.py")
    command = command.replace("python", shlex.quote(sys.executable), 1) + " --help"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and "--modelpath" in done.stdout
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    command = script_command("train.py", launcher=distributed.launch_command())
    assert re.fullmatch(r"torchrun --nproc-per-node 2 \S*/train.py", command)


def test_the_start_of_workers_counts_as_waiting(place, tiny_args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(*tiny_args, "--losses", "L1", "--steps", "1", "--modelpath", "run")
    load = train.load_batches
    monkeypatch.setattr(train, "load_batches", lambda *args, **more: time.sleep(0.5) or load(*args, **more))
    run.fit()
    assert run.waited >= 0.5


def test_large_sets_go_to_the_disk_and_the_next_start_reads_none(
    tiny_args, images, tmp_path, monkeypatch, capsys, same_files
):
    """By --cache alone; the run is the same bit by bit as one in memory."""
    import data.cache
    import data.datasets

    monkeypatch.chdir(tmp_path)
    args = [*tiny_args, "--losses", "L1", "--endepoch", "3"]
    make_run(*args, "--cache", "none", "--modelpath", "memory").fit()
    monkeypatch.setattr(data.cache.ImageCache.__init__, "__defaults__", (1 << 30, 0))
    make_run(*args, "--cache", "decoded", "--endepoch", "1", "--modelpath", "disk").fit()
    assert len(list(Path("decoded").rglob("*.rgb"))) == 4
    monkeypatch.setattr(data.datasets, "read_rgb", lambda path: pytest.fail(f"{path} was read again"))
    run = make_run("--load", "--modelpath", "disk", "--endepoch", "3")
    assert run.config.cache == str(tmp_path / "decoded") and "stored" not in run.report.start()
    run.fit()
    same_files(Path("memory"), Path("disk"))


def test_notes_about_the_folders_are_shown_at_the_start(tiny_args, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images, "set/HR")
    for path in images.iterdir():
        rgb = Image.fromarray(read_rgb(path))
        Path("set/LR").mkdir(exist_ok=True)
        rgb.resize((rgb.width // 2, rgb.height // 2)).save(f"set/LR/{path.stem}x2.png")
    Path("set/photo.heic").touch()
    args = [*tiny_args, "--losses", "L1", "--trainpath", "set", "--patch", "24", "--modelpath", "run"]
    start = make_run(*args).report.start()
    assert "\npassed over in set: 1 .heic" in start and "\nLR among HR? set/LR/" in start and start.count("\n") == 3
