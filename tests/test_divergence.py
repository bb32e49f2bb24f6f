"""A loss that grows instead of falling is said at once, without waiting for the device in a step."""

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from losses import TLW, UDL, DualPerceptual, PixelLoss, Term, UncertaintyHead, WeightedSum
from losses.pixel import absolute_error
from losses.tlw import k_schedule
from models import build_network
from training.divergence import DivergenceWatch, LossHistory


def first_alarm(losses) -> int | None:
    """The number of the loss, from 1, at which a history says so."""
    history = LossHistory()
    return next((number for number, loss in enumerate(losses, 1) if history.add(float(loss))), None)


def noisy(n, middle, spread=0.5, seed=0):
    """Losses of batches of one image: log-normal, from a tenth to ten times the middle."""
    return middle * np.exp(spread * np.random.default_rng(seed).normal(size=n))


@pytest.mark.parametrize(
    "losses",
    [
        noisy(5000, 0.1, 0.8),
        noisy(3000, 0.1) * np.linspace(20, 1, 3000),  # falls
        noisy(3000, 0.1) * np.linspace(1, 8, 3000),  # grows slowly: a schedule of k, a discriminator that learns
        np.random.default_rng(1).normal(0, 1, 5000),  # around 0, as log-likelihoods may be
        np.concatenate([noisy(100, 0.1), [1e6] * 2, noisy(100, 0.1)]),  # a bad batch
        np.concatenate([[1e-5], noisy(100, 0.1)]),  # a flat image first
        [math.nan] * 50,
        [0.0] * 50,
    ],
    ids=["noisy", "falling", "growing slowly", "around 0", "a spike", "flat first", "not finite", "zero"],
)
def test_no_false_alarm(losses):
    assert first_alarm(losses) is None


@pytest.mark.parametrize(
    "losses, at",
    [
        (np.concatenate([noisy(200, 0.1), noisy(50, 40.0)]), 203),
        (np.concatenate([noisy(12, 0.1), noisy(50, 40.0)]), 15),
        (np.concatenate([[0.6, 0.8], noisy(50, 3000.0)]), 7),  # in the third step
        (np.concatenate([-np.abs(noisy(100, 0.3)), noisy(50, 9.0, 0.1)]), 103),  # from below 0
        (np.concatenate([noisy(100, 0.1), [math.inf, 9, math.nan, 9, 9]]), 105),
    ],
    ids=["late", "early", "at once", "negative", "with infinities"],
)
def test_alarm(losses, at):
    assert first_alarm(losses) == at


def test_a_slow_explosion():
    """Doubling every 70 steps, from any level."""
    for level in (1e-3, 1e3):
        at = first_alarm(noisy(2000, level, 0.3) * 2 ** (np.arange(2000) / 70))
        assert at is not None and 200 < at < 800


def test_losses_are_read_only_when_asked():
    """In a step they stay where they are: those of the meta device cannot be read at all."""
    watch = DivergenceWatch(["L1"], 10)
    for _ in range(10):
        watch.add({"L1": torch.zeros((), device="meta")})
    with pytest.raises(NotImplementedError):
        watch.check(10, {"L1": 0})


def test_each_network_is_reported_once():
    watch, said = DivergenceWatch(["a", "b"], 5), []
    for step in range(1, 201):
        watch.add({"a": torch.tensor(0.1 if step < 101 else 50.0), "b": torch.tensor(0.1)})
        if step % 5 == 0:
            said += watch.check(step, {"a": 0, "b": 0})
    assert len(said) == 1
    assert said[0].startswith("a diverges: at step 103 its loss is 50, beyond 1, which is 10 times its running median;")


def test_a_loss_that_has_fallen_again_is_said_as_it_was():
    watch = DivergenceWatch(["a"], 100)
    for step in range(1, 101):
        watch.add({"a": torch.tensor(50.0 if 60 < step < 70 else 0.1)})
    (said,) = watch.check(100, {"a": 0})
    assert said.startswith("a diverges: at step 63 its loss is 50, beyond 1, ")


def test_another_phase_is_no_divergence():
    """As UDL's second stage, or the terms of DP after --pretrain-epochs, in the middle of what is read at once."""
    watch = DivergenceWatch(["L1"], 10)
    for step in range(1, 101):
        watch.add({"L1": torch.tensor(0.001 if step < 55 else 5.0)})
        assert step % 10 or watch.check(step, {"L1": int(step > 54)}) == []


def test_phases_of_losses():
    net = build_network("EDSR", 2, {"blocks": 1, "channels": 4})
    pixel = PixelLoss(absolute_error)
    assert pixel.phase(0) == pixel.phase(99)
    udl = UDL(net, UncertaintyHead(4, 2), second=3)
    before = udl.phase(2.9)
    udl.begin_epoch(net, 3)
    assert udl.phase(3) != before
    tlw = TLW("L1", k=partial(k_schedule, k_epochs=1))  # from 0.3 to 0.68 at epoch 1: WC grows by several times
    assert tlw.phase(0) == tlw.phase(0.9) != tlw.phase(1) and tlw.phase(8) == tlw.phase(9)
    late = WeightedSum(Term(pixel), Term(DualPerceptual(("alexnet:conv5",), 0.5), start_epoch=1.5))
    assert late.phase(0) == late.phase(1.4) != late.phase(1.5) == late.phase(9)
    assert WeightedSum(Term(udl)).phase(3) != WeightedSum(Term(UDL(net, UncertaintyHead(4, 2), second=3))).phase(2)


@pytest.fixture
def hot(images, workplace):
    """L1 at a learning rate that is far too high, beside MSE at a good one."""
    return [
        *("--model", "EDSR", "--model-options", "blocks=4", "channels=16", "--judge", "tiny", "--device", "cpu"),
        *("--losses", "L1[learning_rate=0.1,label=hot]", "MSE", "--trainpath", str(images), "--valpath", str(images)),
        *("--patch", "32", "--batchsize", "4", "--repeat", "80", "--steps", "60", "--modelpath", "run"),
    ]


def notes() -> list[dict]:
    return [entry for line in Path("run/log.jsonl").open() if "note" in (entry := json.loads(line))]


def test_it_is_said_logged_and_noted(hot, capsys):
    train.main(hot)
    out = capsys.readouterr().out
    (note,) = notes()
    assert note["step"] < 60 and note["note"].startswith("hot diverges: at step ")
    assert all(flag in note["note"] for flag in ("--warmup", "--clip-grad", "--learning-rate"))
    assert out.count(note["note"]) == 2 and f"note: {note['note']}" in out  # at once, and at the end


def test_it_stops_the_run(hot, capsys):
    with pytest.raises(SystemExit) as end:
        train.main([*hot, "--on-divergence", "stop", "--save-every", "1"])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and "train.py: error: hot diverges: at step " in err
    assert notes()[0]["step"] < 60 and "to resume: " in out and not Path("run/best_MSE.pt").exists()
