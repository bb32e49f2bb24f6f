"""A run whose writing fails: killed in the middle of a save, or on a disk that is full."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import configs
import train
import val
from runs import atomic, checkpoint
from runs.checkpoint import load_checkpoint, load_last, serialize
from runs.writer import RunWriter

ROOT = Path(__file__).parents[1]


def make_run(args, *more) -> train.Trainer:
    return train.Trainer(configs.load([*args, *more]))


# --- killed in a save ---

# What a save of last.pt does, in its order. "half": within the writing itself.
POINTS = ["half", "fsync of the file", "link", "replace previous.pt", "replace last.pt", "fsync of the folder"]


def die_at(point: str, save: int) -> None:
    """Have this process kill itself when it comes to that point of the save-th save of last.pt."""
    saves = 0
    inside = False
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace")}
    write, real_open = atomic.atomic_write, open

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def watched(path, content, **options):
        nonlocal inside, saves
        saves += path.name == "last.pt"
        inside = path.name == "last.pt" and saves == save
        write(path, content, **options)
        inside = False

    def fsync(descriptor):
        folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        if inside and point == f"fsync of the {'folder' if folder else 'file'}":
            die()
        real["fsync"](descriptor)

    def link(source, target):
        if inside and point == "link":
            die()
        real["link"](source, target)

    def replace(source, target):
        if inside and point == f"replace {target.name}":
            die()
        real["replace"](source, target)

    def opened(path, mode="r", **options):
        file = real_open(path, mode, **options)
        if inside and point == "half" and path.name == "last.pt.tmp":
            file.write(b"half")
            file.flush()
            die()
        return file

    checkpoint.atomic_write, os.fsync, os.link, os.replace, atomic.open = watched, fsync, link, replace, opened


def test_killed_within_a_save(args, same_files):
    """At each point of one in turn, the run going on in between."""
    args = [*args, "--losses", "L1", "--save-every", "1"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a process forked from one with more would wait for them; and sums depend on their number
    last = None
    try:
        make_run(args, "--modelpath", "whole").fit()
        for point in POINTS:
            started = Path("run/last.pt").exists()
            child = os.fork()
            if not child:
                try:
                    die_at(point, save=2)
                    make_run(["--load"] if started else args, "--modelpath", "run").fit()
                finally:
                    os._exit(1)  # not reached where it was killed
            assert os.waitpid(child, 0)[1] == signal.SIGKILL, point
            state, path, wrong = load_last(Path("run"))
            assert wrong is None and path.name == "last.pt", point
            assert last is None or state["step"] > last
            last = state["step"]
        make_run(["--load", "--modelpath", "run"]).fit()
    finally:
        torch.set_num_threads(threads)
    same_files(Path("whole"), Path("run"))
    assert not list(Path("run").glob("*.tmp"))


# --- a full disk ---


class Full:
    """A file on a disk that takes half of what is written."""

    def __init__(self, file):
        self.file = file

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@pytest.fixture
def full_for(monkeypatch):
    """full_for(name): from now on no file of that name, but all others, can be written whole."""
    names = [None]

    def opened(path, mode="r", **options):
        file = open(path, mode, **options)
        return Full(file) if path.name.removesuffix(".tmp") == names[-1] else file

    monkeypatch.setattr(atomic, "open", opened, raising=False)
    return names.append


def test_no_room_for_one_file(args, full_for, capsys):
    """What is there stays, the run says what is not, and the next one writes it."""
    args = [*args, "--losses", "L1+TLW", "--modelpath", "run"]
    run = Path("run")
    train.main([*args, "--endepoch", "1"])
    endepoch = 2
    for name in ("config.yaml", "log.jsonl", "val.json", "val.csv"):
        words = ["--load", "--modelpath", "run", "--endepoch", str(endepoch)]
        before = (run / name).read_bytes()
        capsys.readouterr()
        full_for(name)
        with pytest.raises(SystemExit) as end:
            train.main(words)
        out, err = capsys.readouterr()
        assert end.value.code == 1 and err.count("\n") == 1, err
        assert name in err and "No space left on device" in err
        assert (run / name).read_bytes() == before and not list(run.glob("*.tmp"))
        if name not in ("config.yaml", "log.jsonl"):  # without those it does not begin
            assert load_checkpoint(run / "last.pt")["step"] == 4 * endepoch
            endepoch += 1
    full_for(None)
    train.main(["--load", "--modelpath", "run", "--endepoch", str(endepoch)])


def test_no_room_for_the_picture(args, full_for, capsys):
    """An extra: one line, and the table and the next command all the same."""
    full_for("weights.png")
    train.main([*args, "--losses", "L1+TLW", "--modelpath", "run", "--endepoch", "1"])
    out, err = capsys.readouterr()
    reason = "[Errno 28] No space left on device: 'run/weights.png'"
    assert err == "" and f"note: run/weights.png was not drawn ({reason})" in out
    assert "PSNR-Y" in out and "val.py --modelpath" in out.splitlines()[-1]
    assert Path("run/val.json").exists() and not Path("run/weights.png").exists()


def test_no_room_for_the_log(tmp_path, full_for, capsys):
    """The states are saved all the same, and the lines wait."""
    run = RunWriter(tmp_path)
    full_for("log.jsonl")
    run.log(step=1)
    run.queue("last.pt", serialize({"step": 1}))
    run.save()
    assert load_last(tmp_path)[0] == {"step": 1} and run.unsaved == "log.jsonl (No space left on device)"
    run.log(step=2)
    full_for(None)
    run.save()
    note = '{"step": 2, "note": "saved again after: No space left on device"}\n'
    assert run.unsaved is None and (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n' + note
    out = capsys.readouterr().out
    assert out.count("training continues") == out.count("saved again after") == 1


def test_no_room_for_what_is_said(args):
    """A full disk behind stdout and nobody who reads stderr do not end a run."""
    command = shlex.join([sys.executable, str(ROOT / "train.py"), *args, "--losses", "L1", "--modelpath", "run"])
    done = subprocess.run(["bash", "-c", f"{command} >/dev/full 2> >(true)"])
    assert done.returncode == 0
    assert load_checkpoint(Path("run/last.pt"))["step"] == 8 and Path("run/val.csv").exists()


def test_no_room_for_the_first_settings(args, full_for, capsys):
    full_for("config.yaml")
    with pytest.raises(SystemExit) as end:
        train.main([*args, "--modelpath", "run"])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and err.count("\n") == 1 and "config.yaml" in err and "nothing was saved yet" in out
    assert not list(Path("run").iterdir())


def test_no_room_for_a_table(workplace, images, full_for, capsys):
    """val.py alone: the table is shown, what can be written is."""
    full_for("table.json")
    with pytest.raises(SystemExit) as end:
        val.main(["--model", "bicubic", "--lpips", "--device", "cpu", "--folder", str(images), "--out", "table.json"])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and "PSNR-Y" in out
    assert err == "val.py: error: not written: table.json (No space left on device); make room, or write elsewhere\n"
    assert [path.name for path in Path().iterdir()] == ["table.csv"]
