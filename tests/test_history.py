"""A run's log read back: curves, times, notes; and the timer that measures a learner's steps."""

import json
import math
import time
from pathlib import Path

import pytest
import torch

from configs import Config
from runs.history import Pace, read_history, read_paces
from training import pace
from training.pace import StepTimer

START = dict.fromkeys(["started", "command", "folder", "device", "processes", "versions", "images"], "")


def write(folder: Path, *lines) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def losses(step: int, **seconds: float) -> dict:
    values = {name: 1 / step for name in seconds}
    return {"step": step, "epoch": 0, "learning_rate": 0.1, "loss": values, "seconds_per_step": seconds, "elapsed": 1.0}


def test_curves(tmp_path):
    validation = {"step": 4, "epoch": 0, "validation": "a", "PSNR-Y": 30.5, "LPIPS-alex": None}
    wc = {"WC": {"a": 2.0}, "skipped": {"b": 1}}
    history = read_history(
        write(tmp_path, {"step": 0} | START, losses(2, a=1, b=2) | wc, losses(4, a=1, b=2), validation)
    )
    assert history.curves["loss"] == {"a": [(2, 0.5), (4, 0.25)], "b": [(2, 0.5), (4, 0.25)]}
    assert history.curves["WC"] == {"a": [(2, 2.0)]} and history.curves["skipped"] == {"b": [(2, 1)]}
    assert history.curves["learning_rate"] == {"": [(2, 0.1), (4, 0.1)]} and history.curves["PSNR-Y"] == {
        "a": [(4, 30.5)]
    }
    assert math.isnan(history.curves["LPIPS-alex"]["a"][0][1]) and history.metrics == ["PSNR-Y", "LPIPS-alex"]
    assert history.curves.keys() == {"loss", "WC", "skipped", "learning_rate", "PSNR-Y", "LPIPS-alex"}
    assert history.steps == 4 and len(history.starts) == 1 and history.damaged == 0


def test_a_step_is_the_mean_without_each_start_s_first_line(tmp_path):
    """Weighted by the steps of the lines; the first ones, with all that warms up, are left out."""
    lines = [{"step": 0} | START, losses(10, a=99), losses(20, a=1), losses(24, a=8)]
    run = write(tmp_path, *lines, {"step": 24} | START, losses(30, a=99), losses(36, a=3))
    assert read_history(run).seconds_per_step("a") == pytest.approx((10 * 1 + 4 * 8 + 6 * 3) / 20)
    assert read_history(write(tmp_path, *lines[:2])).seconds_per_step("a") == 99
    assert read_history(run).seconds_per_step("b") is None


def test_time_is_of_the_own_steps(tmp_path):
    """Also in the course of a line's steps, and across lines that have no time."""
    old = {"step": 30, "epoch": 0, "learning_rate": 0.1, "loss": {"a": 1.0}}
    history = read_history(write(tmp_path, {"step": 0} | START, losses(10, a=2), losses(20, a=1), old, losses(40, a=1)))
    points = [(5, 0), (10, 1), (15, 2), (20, 3), (30, 4), (40, 5)]
    assert history.at_times("a", points) == [(10, 0), (20, 1), (25, 2), (30, 3), (40, 4), (50, 5)]
    assert history.at_times("b", points) == []


def test_time_begins_with_the_run_and_again_where_it_is_resumed(tmp_path):
    """Of a run of --startepoch no earlier step counts; those since the last line before a stop take the usual time."""
    lines = [{"step": 100} | START, losses(110, a=9), losses(120, a=1), {"step": 124} | START, losses(130, a=5)]
    history = read_history(write(tmp_path, *lines))
    assert history.at_times("a", [(step, 0) for step in (110, 120, 130)]) == [(90, 0), (100, 0), (134, 0)]


def test_time_of_a_step_whose_line_is_damaged_in_a_resumed_run(tmp_path):
    write(tmp_path, *(losses(step, L1=0.1) for step in (10, 20, 30, 20, 30)))  # resumed from 10
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 40, "lo\n{"step": 40, "validation": "L1", "PSNR-Y": 20.0}\n')
    history = read_history(tmp_path)
    assert math.isfinite(history.at_times("L1", history.curves["PSNR-Y"]["L1"])[0][0])


def test_ratio_is_to_the_plain_loss(tmp_path):
    names = ("L1", "L1+TLW", "flat", "MSE+TLW", "L1[learning_rate=0.01]")
    config = Config(losses=("L1", "L1+TLW", "L1+TLW[weights=uniform,label=flat]", "MSE+TLW", "L1[learning_rate=0.01]"))
    write(tmp_path, losses(10, **dict(zip(names, (2.0, 20.0, 16.0, 30.0, 3.0)))))
    assert read_paces(tmp_path, config) == {
        "L1": Pace(2, 1),
        "L1+TLW": Pace(20, 10),
        "flat": Pace(16, 8),
        "MSE+TLW": Pace(30, None),
        "L1[learning_rate=0.01]": Pace(3, 1.5),
    }
    assert [str(Pace(0.01234, None)), str(Pace(0.2, 10.04))] == ["0.0123", "0.2 (10x)"]


def test_notes_once_and_what_is_no_line(tmp_path):
    lines = [
        '{"step": 1, "note": "n"}',
        '{"step": 1, "note": "n"}',
        '{"step": 2, "left_out": "a.png"}',
        "{",
        "7",
        '{"a": 1}',
    ]
    lines += ['{"step": 3, "loss": 7, "seconds_per_step": 1}', "[" * 100_000]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    history = read_history(tmp_path)
    assert history.notes == ["step 1: n", "step 2: left out: a.png"] and history.damaged == 4
    assert read_history(tmp_path / "none").curves == {}


# --- the timer ---


def test_the_timer_on_the_cpu(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timer = StepTimer(torch.device("cpu"))
    assert timer.mean() is None
    for _ in range(2):
        with timer.measured():
            pass
    assert timer.mean() == 2 and timer.mean() is None
    with timer.measured():
        pass
    assert timer.mean() == 0.5


def test_the_timer_on_a_gpu_waits_for_nothing_before_it_is_read(monkeypatch):
    """By events, which a fake of CUDA records; they are read, in milliseconds, when the last one has passed."""
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.at = len(done)
            done.append(f"record on {stream}")

        def synchronize(self):
            done.append(f"wait for {self.at}")

        def elapsed_time(self, other):
            assert done[-1] == "wait for 3"
            return 500.0 * (other.at - self.at) * (1 + (self.at == 2))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: pytest.fail("a step waits for the device"))
    timer = StepTimer(torch.device("cuda:1"))
    for _ in range(2):
        with timer.measured():
            pass
    assert done == ["record on stream of cuda:1"] * 4
    assert timer.mean() == pytest.approx((0.5 + 1.0) / 2)


def test_the_timer_remembers_so_many_steps(monkeypatch):
    monkeypatch.setattr(pace, "LONGEST", 3)
    timer = StepTimer(torch.device("cpu"))
    for _ in range(5):
        with timer.measured():
            pass
    assert len(timer.marks) == 3
