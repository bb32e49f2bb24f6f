"""The benchmarks' own claims: that they compare the same computation, and that they run."""

import pytest
import torch

from benchmarks import data, judges, step


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
