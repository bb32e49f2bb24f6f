"""The benchmarks' own claims: that they compare the same computation, and that they run."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import data, gpu, infer, judges, step, tiles
from benchmarks.gpu_checks import differing
from benchmarks.parts import seconds_by_part

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("which", [["--judge", "alex"], ["--judge", "squeeze", "--model", "VDSR", "--batchsize", "2"]])
def test_a_step_is_the_released_one(which):
    """train.py's iteration against the plain transcription of Algorithm 1 with the authors' LPIPS."""
    setup = step.Setup(step.parse([*which, "--size", "48", "--device", "cpu"]))
    apart = step.deviations(setup)
    assert all(apart[name] < most for name, most in step.TOLERANCES.items()), apart


def test_judges_cost(capsys):
    threads = torch.get_num_threads()
    judges.main("--judges tiny lpips-alex --size 48 --batchsize 1 --times 1 --device cpu".split())
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "tiny" in out and "lpips-alex" in out


def test_infer_is_the_plain_loop(images, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    run = tmp_path / "run"
    pixels = infer.write_inputs([str(images)], 2, tmp_path / "lr")
    infer.write_run(run, "EDSR", 2, {"channels": 8, "blocks": 1})
    infer.build_loop(tmp_path / "lr", run, tmp_path / "loop", 1, None)()
    infer.build_infer(tmp_path / "lr", run, tmp_path / "sr", 1)()
    infer.check_same(tmp_path / "loop", tmp_path / "sr")
    assert pixels == 50 * 60 + 48 * 72 + 64 * 48 + 60 * 60 and len(list((tmp_path / "sr").iterdir())) == 4
    (tmp_path / "sr" / "000.png").write_bytes((tmp_path / "lr" / "000.png").read_bytes())
    with pytest.raises(ValueError):
        infer.check_same(tmp_path / "loop", tmp_path / "sr")


def test_infer_is_compared_by_median_and_fastest(images, monkeypatch, capsys):
    def in_turn(works, times, device):
        for build, *args in works.values():
            build(*args)()
        return {
            name: sorted(seconds) for name, seconds in zip(works, ([8.0, 9.0, 13.0], [4.0, 6.0, 6.0], [2.0, 3.0, 4.0]))
        }

    monkeypatch.setattr(infer, "turns_apart", in_turn)
    infer.main(["--folder", str(images), "--model-options", "channels=8", "blocks=1", "--threads", "1"])
    *_, loop, fast, ours = capsys.readouterr().out.splitlines()
    numbers = [[line.split()[i] for i in (-7, -5, -4, -2)] for line in (loop, fast, ours)]
    assert numbers == [
        ["9.00", "1.00", "8.00", "1.00"],
        ["6.00", "1.50", "4.00", "2.00"],
        ["3.00", "3.00", "2.00", "4.00"],
    ]


def test_tiles_cost(images, tmp_path, capsys):
    infer.write_run(tmp_path / "run", "RCAN", 2, {"channels": 8, "groups": 1, "blocks": 1, "reduction": 4})
    tiles.main(["--modelpath", str(tmp_path / "run"), "--folder", str(images), "--tile", "65", "--device", "cpu"])
    assert "whole" in capsys.readouterr().out


def test_patches_of_a_set_beyond_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data.make_images, "__defaults__", ((96, 72),))
    threads = torch.get_num_threads()
    data.main(["--folder", str(tmp_path / "images"), "--images", "3", "--patches", "48", "--draws", "4"])
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert (
        "3 images" in out
        and "s, 3 decoded\nsecond start with a cache of 0 MB" in out
        and "s, 0 decoded\npatch 48" in out
    )
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_where_the_time_goes():
    setup = step.Setup(step.parse("--judge alex --model VDSR --size 48 --device cpu".split()))
    parts = seconds_by_part(*setup.project("fp32"), setup.device, times=1)
    assert {"backward", "SR forward", "judge forward", "judge, reference", "Adam"} <= parts.keys()
    assert all(taken > 0 for taken in parts.values())


# --- benchmarks.gpu ---

# Counts its calls in a file; asked to stop, it goes on from there the next time, as train.py does.
SLOW = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
calls = pathlib.Path(sys.argv[1])
calls.write_text(calls.read_text() + "." if calls.exists() else ".")
time.sleep(60 if len(calls.read_text()) == 1 else 0)
"""


def test_gpu_runs_a_step_and_keeps_what_came_of_it(tmp_path, capsys):
    words = ["--device", "cpu", "--smoke", "--out", str(tmp_path)]
    gpu.main([*words, "--step", "hat"])
    found = json.loads((tmp_path / "hat.json").read_text())
    assert (
        found["state"] == "done"
        and found["numbers"]["windows"] == 256
        and "gradient" in (tmp_path / "hat.txt").read_text()
    )
    gpu.main([*words, "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["hat", "done"] for line in lines)
    assert any(line.split()[:3] == ["tests", "to", "do"] for line in lines)
    with pytest.raises(SystemExit) as end:
        gpu.main([*words, "--step", "nothing"])
    assert end.value.code == 2


def test_gpu_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    slow = [sys.executable, "-c", SLOW, str(tmp_path / "calls")]
    numbers = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write('{\"n\": 3}')", "{json}"]
    steps = [
        gpu.Step("first", [numbers], lambda found: f"n is {found['n']}"),
        gpu.Step("wrong", [[sys.executable, "-c", "raise SystemExit(3)"], slow]),
        gpu.Step("slices", [slow], in_slices=True),
    ]
    monkeypatch.setattr(gpu, "steps_of", lambda args: steps)
    monkeypatch.setattr(gpu, "SPARE", 1)
    words = ["--smoke", "--device", "cpu", "--out", str(tmp_path), "--minutes", "0.1"]
    states = []
    for _ in range(3):
        with pytest.raises(SystemExit, match="failed: wrong"):
            gpu.main(words)
        states.append({step.name: json.loads((tmp_path / f"{step.name}.json").read_text())["state"] for step in steps})
    assert states[0] == {"first": "done", "wrong": "failed", "slices": "stopped"}
    assert states[1] == states[2] == {"first": "done", "wrong": "failed", "slices": "done"}
    assert (tmp_path / "calls").read_text() == ".." and capsys.readouterr().out.count("first ...") == 1
    monkeypatch.setattr(
        gpu, "steps_of", lambda args: [gpu.Step("whole", [[sys.executable, "-c", SLOW, str(tmp_path / "again")]])]
    )
    with pytest.raises(SystemExit, match="failed: whole"):  # it had a whole slice
        gpu.main(words)


def test_gpu_prepares_what_is_copied(tmp_path, images, alex_file, monkeypatch, capsys):
    for name in gpu.INPUTS:
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(images)
    words = [
        "--prepare",
        "--inputs",
        str(tmp_path / "inputs"),
        "--data",
        str(tmp_path / "data"),
        "--weights",
        str(alex_file),
    ]
    gpu.main(words)
    assert {path.name for path in (tmp_path / "inputs").iterdir()} == {*gpu.INPUTS, alex_file.name}
    monkeypatch.setattr(gpu, "MOST_MIB", 0.001)
    with pytest.raises(SystemExit):
        gpu.main(words)
    assert "at most 0.001 MiB" in capsys.readouterr().err


def test_gpu_commands_in_the_docs():
    text = (ROOT / "docs/performance.md").read_text()
    commands = re.findall(r"^python -m benchmarks\.gpu([^\n]*)", text, re.M)
    assert len(commands) > 2
    names = [step.name for step in gpu.steps_of(gpu.parse([]))]
    for command in commands:
        assert set(gpu.parse(shlex.split(command)).step or ()) <= set(names)


def test_states_that_differ():
    one = {"a": [torch.zeros(2), 1], "b": None}
    assert differing(one, {"a": [torch.zeros(2), 1], "b": None}) == []
    assert differing(one, {"a": [torch.tensor([0, 1e-9]), 1], "b": None}) == [".a[0]"]
    assert differing(one, {"a": [torch.zeros(2), 1]}) == [".b"]
