"""--compile: the same training with translated networks, checkpoints as ever, and one line where it cannot work."""

import functools

import pytest
import torch

import configs
import train
from runs.checkpoint import load_checkpoint


@pytest.fixture
def traced(monkeypatch):
    """torch.compile traces the networks, but has PyTorch run what it traced: no compiler is needed. -> what it traced."""
    seen, compile = [], torch.compile

    def backend(graph, example_inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(compile, backend=backend))
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self: setattr(self, "_compiled_call_impl", compile(self._call_impl, backend=backend)),
    )
    yield seen
    torch.compiler.reset()


def test_the_same_training(args, traced):
    for folder, more in (("plain", []), ("compiled", ["--compile"])):
        run = train.Trainer(configs.load([*args, "--modelpath", folder, *more]))
        run.fit()
        if not more:
            assert not traced
    assert len(traced) >= 3  # a trial, the SR network and the weighting network
    plain, compiled = (load_checkpoint(run.folder.parent / name / "last.pt") for name in ("plain", "compiled"))
    for name, learner in plain["learners"].items():
        for part in ("sr_network", "loss"):
            assert list(learner[part]) == list(compiled["learners"][name][part])
            for key, value in learner[part].items():
                torch.testing.assert_close(value, compiled["learners"][name][part][key], rtol=1e-3, atol=1e-4)
    run = train.Trainer(configs.load(["--load", "--modelpath", "compiled", "--no-compile", "--endepoch", "3"]))
    run.fit()


def test_no_compiler(args, workplace, monkeypatch, capsys):
    def fail(function):
        def run(*inputs):
            raise RuntimeError("no working C++ compiler\nfound")

        return run

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(SystemExit) as end:
        train.main([*args, "--compile"])
    error = capsys.readouterr().err
    assert (
        end.value.code == 2
        and error.count("\n") == 1
        and "--compile" in error
        and "no working C++ compiler found" in error
    )
    assert not (workplace / "checkpoints").exists()
