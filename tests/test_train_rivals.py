"""Training with the rivals: whole runs, joint and alternating optimisation, and exact resume through their stages."""

import json
from functools import partial

import pytest
import torch

import configs
import losses
import train
from losses import LOSSES
from losses.discriminator import VGGDiscriminator
from runs.checkpoint import load_checkpoint

RIVALS = ["L1+UDL", "L1+PSPL", "MSE+PSPL", "L1+DP", "L1+DP+GAN", "L1+TLW+DP", "L1+TLW+DP+GAN"]


def test_no_loss_is_left_out():
    assert set(RIVALS) == set(LOSSES) - {"L1", "MSE", "L1+TLW", "MSE+TLW"}


@pytest.fixture
def args(tiny_args, alex_file, squeeze_file, workplace, monkeypatch):
    """A tiny run that any of the losses can be put into, the discriminator small."""
    monkeypatch.setattr(losses, "VGGDiscriminator", partial(VGGDiscriminator, channels=4))
    return [
        *tiny_args,
        "--dp-extractors",
        "alexnet:conv2",
        "squeezenet:fire3",
        "--extractor-weights",
        str(alex_file),
        str(squeeze_file),
    ]


def trained(args, *more) -> train.Trainer:
    run = train.Trainer(configs.load([*args, *map(str, more)]))
    run.fit()
    return run


def log_of(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_all_losses_in_one_run(args, workplace):
    train.main([*args, "--losses", *LOSSES, "--modelpath", "run"])
    folder = workplace / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "log.jsonl", "last.pt", "val.json", "val.csv", "weights.png"} | {
        f"best_{x}.pt" for x in LOSSES
    }
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()][:2]
    for entry in steps:
        assert entry["loss"].keys() == set(LOSSES) and all(0 < loss < 10_000 for loss in entry["loss"].values())
        assert entry["WC"].keys() == {"L1+TLW", "MSE+TLW", "L1+TLW+DP"} and entry["k"].keys() == {
            *entry["WC"],
            "L1+TLW+DP+GAN",
        }
        assert entry["D"].keys() == {"L1+DP+GAN"} and entry["stage"] == {"L1+UDL": 1}
        assert entry["sigma"] == {"L1+PSPL": 0.5, "MSE+PSPL": 0.5}
    judges = {name: torch.load(folder / f"best_{name}.pt")["judges"] for name in LOSSES}
    learned_from = {"TLW": ["lpips-squeeze"], "DP": ["alexnet:conv2", "squeezenet:fire3"]}
    for name, found in judges.items():
        assert found == sum((learned_from.get(term, []) for term in name.split("+")), []), name


@pytest.mark.parametrize("name", ["L1+UDL", "L1+DP+GAN", "L1+TLW+DP"])
def test_alone_or_among_others_is_the_same(args, name, assert_same):
    among = trained(args, "--losses", "L1", "L1+TLW+DP", "L1+UDL", "L1+DP+GAN", "--steps", 2)
    alone = trained(args, "--losses", name, "--steps", 2)
    learner = next(learner for learner in among.experiment.learners if learner.name == name)
    assert_same(alone.experiment.learners[0].state_dict(), learner.state_dict())
    first = {learner.net.head[0].weight.data_ptr() for learner in among.experiment.learners}
    assert len(first) == 4


def test_judge_and_extractors_are_built_where_needed(args):
    for names, judge, extractors in (
        (["L1+UDL", "L1+PSPL"], False, []),
        (["L1+TLW"], True, []),
        (["L1+DP"], False, ["alexnet:conv2", "squeezenet:fire3"]),
    ):
        run = train.Trainer(configs.load([*args, "--losses", *names]))
        assert (run.experiment.judge is not None, list(run.experiment.extractors)) == (judge, extractors)


def test_features_of_the_reference_once_a_batch_for_all_learners(args):
    run = train.Trainer(configs.load([*args, "--losses", "L1", "L1+DP", "L1+TLW+DP", "--steps", "1"]))
    calls = {name: 0 for name in run.experiment.extractors}
    for name, extractor in run.experiment.extractors.items():
        against = extractor.with_reference

        def count(hr, name=name, against=against):
            calls[name] += 1
            return against(hr)

        extractor.with_reference = count
    run.fit()
    assert set(calls.values()) == {1}


# --- who learns ---


def moved(before, module) -> set[str]:
    return {name for name, p in module.named_parameters() if not torch.equal(before[name], p)}


def snapshot(module) -> dict:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_udls_head_learns_with_the_network_in_stage_1_alone(args):
    run = train.Trainer(configs.load([*args, "--losses", "L1+UDL", "--udl-epoch", "1", "--endepoch", "2"]))
    (learner,) = run.experiment.learners
    assert learner.helper_opt is None
    states, validate = [], run.validate
    before = snapshot(learner.loss)
    run.validate = lambda: (states.append(snapshot(learner.loss)), validate())
    run.fit()
    names = {name for name in before if name.startswith("head.")}
    assert {name for name in before if not torch.equal(before[name], states[0][name])} == names
    second = {name for name in before if not torch.equal(states[0][name], states[1][name])}
    assert second and all(name.startswith("frozen.") for name in second)  # at its beginning: stage 1's weights
    assert all(torch.equal(states[1][f"frozen.{name}"], states[1][name]) for name in names)
    assert [entry["stage"]["L1+UDL"] for entry in log_of(run) if "loss" in entry] == [1, 1, 2, 2]


@pytest.mark.parametrize("restart", [False, True])
def test_udls_second_stage_may_have_an_optimizer_and_a_schedule_of_its_own(args, restart):
    """Two epochs of two steps in each stage, the rate halved in the last step of either."""
    flags = ["--udl-epoch", 1, "--endepoch", 2, "--schedule", "milestones", "--milestones", 1, "--learning-rate", 0.01]
    run = trained(args, "--losses", "L1+UDL", *flags, *(["--udl-restart"] if restart else []))
    (learner,) = run.experiment.learners
    counts = {int(learner.opt.state[p]["step"]) for p in learner.net.parameters()}
    assert counts == {2 if restart else 4}
    assert all((p in learner.opt.state) != restart for p in learner.loss.head.parameters())
    entries = [entry for entry in log_of(run) if "loss" in entry]
    rates = [entry.get("own_learning_rate", {}).get("L1+UDL", entry["learning_rate"]) for entry in entries]
    assert rates == ([0.01, 0.005, 0.01, 0.005] if restart else [0.01, 0.005, 0.005, 0.005])


def test_the_discriminator_and_the_network_alternate(args):
    config = configs.load([*args, "--losses", "L1+DP+GAN", "--pretrain-epochs", "1"])
    run = train.Trainer(config)
    (learner,) = run.experiment.learners
    random = torch.Generator().manual_seed(0)
    lr, hr = (torch.rand(2, 3, size, size, generator=random) * 2 - 1 for size in (8, 32))
    target = train.Target.judged_by(None, hr, lr, run.experiment.extractors)
    discriminator = learner.loss.helper
    for epoch, learns in ((0.5, False), (1.0, True)):
        before = snapshot(discriminator), snapshot(learner.net)
        helper_loss, loss = train.em_step(learner, lr, target, epoch)
        assert (helper_loss is not None) == learns and bool(moved(before[0], discriminator)) == learns
        assert moved(before[1], learner.net) and loss.isfinite()


def test_the_network_meets_the_discriminator_that_has_just_learned(args):
    run = train.Trainer(configs.load([*args, "--losses", "L1+DP+GAN"]))
    (learner,) = run.experiment.learners
    gan = learner.loss.losses[2]
    seen, forward, learn = [], gan.forward, gan.helper_loss
    gan.helper_loss = lambda *a: (seen.append(snapshot(gan.helper)), learn(*a))[1]
    gan.forward = lambda *a: (seen.append(snapshot(gan.helper)), forward(*a))[1]
    hr = torch.rand(2, 3, 32, 32)
    train.em_step(learner, torch.rand(2, 3, 8, 8), train.Target.judged_by(None, hr, None, run.experiment.extractors), 0)
    assert len(seen) == 2 and any(not torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert all(torch.equal(seen[1][name], p) for name, p in gan.helper.named_parameters())  # it keeps still then


# --- going on ---


@pytest.mark.parametrize(
    "name, more, cut",
    [
        ("L1+UDL", ["--udl-epoch", "1"], 1),  # goes over to the second stage just after the resume
        ("L1+UDL", ["--udl-epoch", "1"], 2),  # is in the second stage
        ("L1+UDL", ["--udl-epoch", "1", "--udl-restart"], 1),
        ("L1+UDL", ["--udl-epoch", "1", "--udl-restart"], 2),
        ("L1+PSPL", ["--pspl-epoch", "3"], 1),
        ("L1+DP+GAN", ["--gan", "ragan"], 1),
        ("L1+TLW+DP+GAN", ["--pretrain-epochs", "1.5"], 1),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(args, name, more, cut, assert_same):
    args = [*args, "--losses", name, *more, "--schedule", "milestones", "--milestones", "1", "3"]
    whole = trained(args, "--endepoch", 3, "--modelpath", "whole")
    trained(args, "--endepoch", cut, "--modelpath", "parts")
    resumed = trained(["--load", "--modelpath", "parts", "--endepoch", "3"])
    assert_same(load_checkpoint(resumed.folder / "last.pt"), load_checkpoint(whole.folder / "last.pt"))
    assert log_of(resumed) == log_of(whole)


def test_sigma_grows_within_an_epoch(args):
    run = trained(args, "--losses", "L1+PSPL", "--pspl-beta", 1, "--pspl-epoch", 2, "--endepoch", 2)
    assert [entry["sigma"]["L1+PSPL"] for entry in log_of(run) if "loss" in entry] == [1, 1.5, 2, 2.5]


def test_the_milestones_are_counted_in_steps(args):
    run = trained(
        args,
        "--losses",
        "L1",
        "--endepoch",
        2,
        "--schedule",
        "milestones",
        "--milestones",
        1,
        3,
        "--learning-rate",
        0.01,
    )
    assert [entry["learning_rate"] for entry in log_of(run) if "loss" in entry] == [0.01, 0.005, 0.005, 0.0025]


def test_bf16_trains_all_of_them(args):
    full, half = (trained(args, "--losses", *RIVALS, "--precision", p, "--modelpath", p) for p in ("fp32", "bf16"))
    for a, b in zip(log_of(full), log_of(half)):
        for name, loss in a.get("loss", {}).items():
            assert b["loss"][name] == pytest.approx(loss, rel=0.1), name
