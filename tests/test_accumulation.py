"""--accumulate: gradients of batches one after the other are those of one batch as large as all of them."""

import signal
from functools import partial

import pytest
import torch

import configs
import losses.tlw
import train
from configs import Config
from losses import global_batch
from runs.checkpoint import SR_NETWORK, load_checkpoint
from tests.conftest import log_without_clocks
from training import stop_signals
from training.learner import build_learners

LOSSES = [
    "L1",
    "L1+TLW",
    "MSE+TLW[m_step=released,label=released]",
    "L1+TLW[weights=shuffled,samples=2,e_every=2,reuse_mu=true,weighting_scale=2,label=cheap]",
    "L1+TLW[weights=uniform,label=uniform]",
    "L1+UDL",
    "L1+PSPL",
]
NAMES = ["L1", "L1+TLW", "released", "cheap", "uniform", "L1+UDL", "L1+PSPL"]
PARTS = {"whole": (4, 1), "halves": (2, 2), "quarters": (1, 4)}


def smooth(patch) -> None:
    """Rounding stays small: Adam's first step is the gradient's sign, and TLW's samples are nearly binary."""
    patch.setattr(torch.optim, "Adam", partial(torch.optim.Adam, eps=1e-3))
    patch.setattr(losses.tlw, "relaxed_bernoulli", partial(losses.tlw.relaxed_bernoulli, temperature=1.0))


@pytest.fixture(scope="module")
def base(tiny_args):
    """Four steps of four images in two epochs, UDL's second stage in the second."""
    words = ["--judge", "tiny", "--metrics", "tiny", "--repeat", "2", "--endepoch", "2", "--udl-epoch", "1"]
    return [*tiny_args, *words, "--losses", *LOSSES]


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """The trainings by PARTS, with BatchNorm in eval mode; and the largest batch that each network saw."""
    found, folder = {}, tmp_path_factory.mktemp("accumulation")
    for name, (size, count) in PARTS.items():
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            smooth(patch)
            words = ["--batchsize", size, "--accumulate", count, "--modelpath", folder / name]
            run = train.Trainer(configs.load([*base, *map(str, words)]))
            for learner in run.experiment.learners:
                for norm in learner.batch_norms:
                    norm.eval()
                for part in (learner.net, *filter(None, [learner.loss.weighting])):
                    part.register_forward_hook(lambda module, inputs, _: seen.append(len(inputs[0])))
            run.fit()
        found[name] = run, max(seen)
    return found


def log_of(run) -> list[dict]:
    return log_without_clocks(run.folder)


@pytest.mark.parametrize("name", ["halves", "quarters"])
def test_parts_give_what_the_whole_gives(runs, name):
    (whole, largest), (run, seen) = runs["whole"], runs[name]
    assert (largest, seen) == (4, PARTS[name][0]) and run.experiment.epoch_steps == whole.experiment.epoch_steps == 2
    entries = [[x for x in log_of(each) if "loss" in x] for each in (whole, run)]
    assert len(entries[0]) == 4 and [list(x["WC"]) for x in entries[0]][1] == ["L1+TLW", "released", "cheap"]
    for expected, found in zip(*entries, strict=True):
        for key in ("loss", "WC"):
            assert found[key] == pytest.approx(expected[key], rel=2e-5)
    states = [load_checkpoint(each.folder / "last.pt") for each in (whole, run)]
    for loss in NAMES:
        one, other = (state["learners"][loss] for state in states)
        for part in (SR_NETWORK, "loss"):
            for key, value in one[part].items():
                assert torch.allclose(value.float(), other[part][key].float(), rtol=1e-5, atol=1e-5), (loss, key)
        assert torch.equal(one["rng_states"]["cpu"], other["rng_states"]["cpu"])  # as many draws


def test_the_whole_is_what_it_was(base, runs, workplace):
    """Had it not moved, the comparison would say nothing."""
    first = build_learners(configs.load(base), torch.device("cpu"))
    last = load_checkpoint(runs["whole"][0].folder / "last.pt")["learners"]
    for learner in first:
        for part, module in ((SR_NETWORK, learner.net), ("loss", learner.loss)):
            began = dict(module.named_parameters())
            moved = [(last[learner.name][part][key] - value).abs().max() for key, value in began.items()]
            assert not moved or max(moved) > 1e-4, (learner.name, part)


def test_noise_is_that_of_the_whole_batch():
    def draw(count):
        return global_batch.global_rand(5, 6 // count, 2, batch_dim=1), global_batch.global_rand(6 // count, 3)

    torch.manual_seed(3)
    expected, state = draw(1), torch.get_rng_state()
    torch.manual_seed(3)
    noise, parts = [], []
    for number in range(3):
        with global_batch.part(number, 3, noise):
            parts.append(draw(3))
        if not number:
            assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), state)
    for i, dim in enumerate((1, 0)):
        assert torch.equal(torch.cat([part[i] for part in parts], dim), expected[i])
    assert global_batch.global_rand(2, 3).shape == (2, 3) and len(noise) == 2  # outside, all is as before


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(base, cut, workplace, monkeypatch, same_files):
    args = [*base, "--losses", *LOSSES[:4], "--batchsize", "2", "--accumulate", "2"]
    step, calls = train.accumulated_em_step, iter(range(1000))

    def stop(*arguments):
        if next(calls) == 4 * (cut - 1):
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    train.Trainer(configs.load([*args, "--modelpath", "whole"])).fit()
    monkeypatch.setattr(train, "accumulated_em_step", stop)
    with pytest.raises(stop_signals.Stopped):
        train.Trainer(configs.load([*args, "--modelpath", "parts"])).fit()
    train.Trainer(configs.load(["--load", "--modelpath", "parts"])).fit()
    same_files(*map(train.Path, ("parts", "whole")))


@pytest.mark.parametrize(
    "losses, setting",
    [
        (["L1+TLW[wc=normalised]"], "wc=normalised"),
        (["L1", "L1+UDL[udl_minimum=batch]"], "udl_minimum=batch"),
        (["L1+DP"], "dp_dynamic=true"),
        (["L1+DP+GAN[gan=ragan,dp_dynamic=false]"], "gan=ragan"),
    ],
    ids=str,
)
def test_what_takes_the_whole_batch_is_refused(losses, setting):
    config = Config(losses=tuple(losses), patch=32, batchsize=2)
    assert build_learners(config, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=f"--accumulate 2: expected 1 with .*, whose {setting} needs the whole batch at once"
    ):
        build_learners(Config(losses=tuple(losses), patch=32, batchsize=2, accumulate=2), torch.device("cpu"))


def test_batch_norm_is_said(base, workplace):
    args = [*base, "--losses", "L1", "L1+TLW", "L1+TLW[weights=uniform]", "--batchsize", "2"]
    (note,) = (x for x in train.Trainer(configs.load([*args, "--accumulate", "3"])).experiment.notes if "Norm" in x)
    assert note == "accumulate: BatchNorm sees 2 images at a time, not 6: L1+TLW"
    assert not [x for x in train.Trainer(configs.load(args)).experiment.notes if "Norm" in x]


def test_whole_images_of_different_sizes(base, workplace):
    at = base.index("--patch")
    with pytest.raises(ValueError, match="--accumulate 2: images of different sizes; add --patch or take 1"):
        train.Trainer(configs.load([*base[:at], *base[at + 2 :], "--batchsize", "1", "--accumulate", "2"]))


def test_more_images_than_any_batch_has(capsys):
    with pytest.raises(SystemExit):
        configs.load(["--batchsize", "256", "--accumulate", "257"])
    assert "--accumulate 257: expected up to 256 batches of 256" in capsys.readouterr().err
