"""The benchmarks' own claims: that they compare the same computation, and that they run."""

import pytest
import torch

from benchmarks import data, infer, judges, step, tiles


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
