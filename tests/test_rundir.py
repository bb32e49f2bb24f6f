"""A run's folder: states saved whole or not at all, nothing executed on loading, numbering."""

import json
import os

import pytest
import torch

from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.folder import newest_run_dir, next_run_dir
from runs.log import trim_log
from runs.writer import RunWriter


class Bomb:
    """Unpickling it runs code: it makes the folder `path`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_save_and_load(tmp_path):
    state = {"x": torch.arange(3.0), "y": torch.zeros(2, 2, dtype=torch.uint8)}
    save_checkpoint(state, tmp_path / "last.pt")
    assert equal_states(load_checkpoint(tmp_path / "last.pt"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("crash", ["in torch.save", "in os.replace"])
def test_a_crash_leaves_the_old_state_whole(tmp_path, monkeypatch, crash):
    path, old = tmp_path / "last.pt", {"x": torch.zeros(4)}
    save_checkpoint(old, path)

    def half_written(state, file):
        file.write(b"half of a che")
        raise OSError("disk full")

    def never(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if crash == "in torch.save":
            patch.setattr(torch, "save", half_written)
        else:
            patch.setattr(os, "replace", never)
        with pytest.raises((OSError, KeyboardInterrupt)):
            save_checkpoint({"x": torch.ones(4)}, path)
    assert equal_states(load_checkpoint(path), old)
    save_checkpoint({"x": torch.ones(4)}, path)  # what the crash left behind does not stand in the way
    assert equal_states(load_checkpoint(path), {"x": torch.ones(4)})


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    path = tmp_path / "last.pt"
    torch.save({"net": Bomb(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match="last.pt: cannot be read as a checkpoint of tensors") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have run


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="last.pt") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint({"x": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(path)


def test_missing_file_folder_and_foreign_content(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(ValueError, match="no such checkpoint"):
            load_checkpoint(path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a checkpoint, found a list"):
        load_checkpoint(tmp_path / "list.pt")


def test_next_run_counts_on(tmp_path):
    assert next_run_dir("EDSR", 4, tmp_path / "not_there") == tmp_path / "not_there/EDSR_x4_001"
    for name in ("EDSR_x4_001", "EDSR_x4_009", "EDSR_x4_mine", "EDSR_x4_500b", "EDSR_x3_020", "HAT-TLW_x4_1000"):
        (tmp_path / name).mkdir()
    assert next_run_dir("EDSR", 4, tmp_path).name == "EDSR_x4_010"  # gaps are not filled
    assert next_run_dir("EDSR", 2, tmp_path).name == "EDSR_x2_001"
    assert next_run_dir("HAT-TLW", 4, tmp_path).name == "HAT-TLW_x4_1001"


def test_newest_run(tmp_path):
    with pytest.raises(ValueError, match="no run in .*; train one with train.py, or name a folder with --modelpath"):
        newest_run_dir(tmp_path)
    for time, name in enumerate(("old/last.pt", "new/best_L1.pt", "older/last.pt", "none/log.jsonl")):
        path = tmp_path / name
        path.parent.mkdir()
        path.touch()
        os.utime(path, (1000 + time, 1000 + time))
    os.utime(tmp_path / "older/last.pt", (10, 10))
    assert newest_run_dir(tmp_path) == tmp_path / "new"
    os.utime(tmp_path / "old/last.pt", (2000, 2000))  # written to again
    assert newest_run_dir(tmp_path) == tmp_path / "old"


def test_log_lines(tmp_path):
    RunWriter(tmp_path).log(step=1, loss={"L1": 0.5})
    RunWriter(tmp_path).log(step=2)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": {"L1": 0.5}}, {"step": 2}]


def test_trim_log_drops_what_comes_after_a_step(tmp_path):
    log = tmp_path / "log.jsonl"
    trim_log(log, 3)  # no log yet: nothing to do
    for step in (1, 3, 5):
        RunWriter(tmp_path).log(step=step, loss=float("nan"))
    trim_log(log, 3)
    assert [json.loads(line) for line in log.read_text().splitlines()] == [{"step": s, "loss": None} for s in (1, 3)]
