"""Training habits of the field: AdamW, the average of the weights (EMA), and what is said in docs/training.md."""

import copy
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch

import configs
import train
from runs.checkpoint import SR_NETWORK, load_checkpoint, load_networks
from tests.conftest import log_without_clocks
from training import stop_signals
from training.learner import build_learners, build_optimizer

EMA = "L1+TLW[ema=0.5]"
AVERAGED = [EMA, "L1", "L1[ema=0.5,label=average]"]


def make_run(argv) -> train.Trainer:
    return train.Trainer(configs.load(list(map(str, argv))))


def trained(*argv) -> train.Trainer:
    run = make_run(argv)
    run.fit()
    return run


def stopped(at_step, call: int, *argv) -> train.Trainer:
    """The run, stopped by a signal within its call of em_step number `call`."""
    at_step(call, lambda: signal.raise_signal(signal.SIGTERM))
    run = make_run(argv)
    with pytest.raises(stop_signals.Stopped):
        run.fit()
    return run


def log_of(run) -> list[dict]:
    return log_without_clocks(run.folder)


@pytest.fixture(scope="module")
def base(tiny_args):
    """Four steps in two epochs, with a judge that needs no file."""
    return [*tiny_args, "--judge", "tiny", "--metrics", "tiny", "--endepoch", "2"]


# --- the optimizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, reference, decay",
    [
        ([], torch.optim.Adam, 0),
        (["--weight-decay", "0.3"], torch.optim.Adam, 0.3),
        (["--optimizer", "adamw"], torch.optim.AdamW, 0.01),
        (["--optimizer", "adamw", "--weight-decay", "0.3"], torch.optim.AdamW, 0.3),
    ],
    ids=str,
)
def test_optimizers_are_torch_s(words, reference, decay):
    random = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    opt = build_optimizer([ours], configs.load([*words, "--learning-rate", "0.1"]))
    other = reference([theirs], lr=0.1, betas=(0.5, 0.999), weight_decay=decay)
    for _ in range(3):
        ours.grad = torch.randn(5, generator=random)
        theirs.grad = ours.grad.clone()
        opt.step()
        other.step()
    assert torch.allclose(ours, theirs, atol=1e-6)
    before = ours.detach().clone()
    opt.found_inf = torch.ones(())  # a step whose gradient is not finite: no decay either
    opt.step()
    assert torch.equal(before, ours)


def test_an_optimizer_of_a_loss_s_own(base):
    losses = ["L1", "L1+TLW[optimizer=adamw,weight_decay=0.2]"]
    plain, own = build_learners(configs.load([*base, "--losses", *losses]), torch.device("cpu"))
    assert type(plain.opt) is torch.optim.Adam and plain.opt.param_groups[0]["weight_decay"] == 0
    for opt in (own.opt, own.helper_opt):
        assert type(opt) is torch.optim.AdamW and opt.param_groups[0]["weight_decay"] == 0.2


# --- the average ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged(base, tmp_path_factory):
    """A run with and without an average, and each step's weights of the one with it."""
    steps, step = [], train.em_step

    def em_step(learner, *arguments):
        values = step(learner, *arguments)
        if learner.name == EMA:
            steps.append(copy.deepcopy(dict(learner.net.state_dict())))
        return values

    folder = tmp_path_factory.mktemp("averaged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "em_step", em_step)
        run = trained(*base, "--losses", *AVERAGED, "--optimizer", "adamw", "--modelpath", folder)
    return run, steps


def expected_average(steps):
    mean = steps[0]
    for weights in steps[1:]:
        mean = {name: 0.5 * value + 0.5 * weights[name] for name, value in mean.items()}
    return mean


def test_the_average_is_what_is_saved_and_used(averaged, assert_same):
    run, steps = averaged
    last = load_checkpoint(run.folder / "last.pt")["learners"]
    expected = expected_average(steps)
    assert len(steps) == 4 and last["L1"]["learning"] is None
    assert_same(dict(last[EMA]["learning"]["network"]), steps[-1])
    for name, value in expected.items():
        assert torch.allclose(last[EMA][SR_NETWORK][name], value, atol=1e-7), name
    assert (expected["head.0.weight"] - steps[-1]["head.0.weight"]).abs().max() > 1e-5
    _, nets, _ = load_networks(run.folder, "last", [EMA])  # as val.py, infer.py and export.py do
    assert_same(dict(nets[EMA].state_dict()), dict(last[EMA][SR_NETWORK]))


def test_the_average_is_what_is_validated(averaged, base):
    """best_LOSS.pt has the scores of the network in it."""
    run, _ = averaged
    best = load_checkpoint(run.folder / f"best_{EMA}.pt")
    _, nets, _ = load_networks(run.folder, "best", [EMA])
    e = run.experiment
    scores = train.evaluate(train.TiledUpscaler(nets[EMA], train.MEMORY), e.validation, e.metrics, "paper")
    assert {name: sum(x) / len(x) for name, x in scores.items()} == pytest.approx(best["scores"], rel=1e-6)


def test_the_average_is_only_looked_at(averaged, assert_same):
    """The weights that learn are those of a run without it."""
    plain, other = (x for x in averaged[0].experiment.learners if x.name != EMA)
    assert plain.ema is None and plain.result is plain.net and other.result is other.ema.module
    assert_same(dict(plain.net.state_dict()), dict(other.net.state_dict()))
    assert not torch.equal(other.result.state_dict()["head.0.weight"], plain.net.state_dict()["head.0.weight"])


@pytest.mark.parametrize("cut", [1, 3])
def test_an_average_resumes_exactly(averaged, base, cut, workplace, at_step, same_files):
    stopped(at_step, 3 * cut - 2, *base, "--losses", *AVERAGED, "--optimizer", "adamw", "--modelpath", "parts")
    resumed = trained("--load", "--modelpath", "parts")
    same_files(resumed.folder, averaged[0].folder)


def test_an_average_may_begin_and_end_with_a_resumed_run(base, workplace, assert_same):
    args = [*base, "--losses", "L1", "--endepoch", "1", "--modelpath", "run"]
    begun = trained(*args)
    before = copy.deepcopy(dict(begun.experiment.learners[0].net.state_dict()))
    resumed = make_run(["--load", "--modelpath", "run", "--endepoch", "2", "--ema", "0.9"])
    (learner,) = resumed.experiment.learners
    assert_same(dict(learner.result.state_dict()), before)
    resumed.fit()
    trained_weights = copy.deepcopy(dict(learner.net.state_dict()))
    assert int(learner.ema.n_averaged) == 2
    last = Path("run/config.yaml").read_text().replace("ema: 0.9", "ema: null")
    Path("run/config.yaml").write_text(last)
    ended = make_run(["--load", "--modelpath", "run", "--endepoch", "3"])
    assert_same(dict(ended.experiment.learners[0].result.state_dict()), trained_weights)


def test_a_skipped_step_leaves_the_average_alone(base, workplace, assert_same):
    run = make_run([*base, "--losses", EMA])
    (learner,) = run.experiment.learners
    seen, forward, count = [], learner.loss.forward, iter(range(9))

    def spoilt(*arguments):
        seen.append(copy.deepcopy(dict(learner.result.state_dict())))
        return forward(*arguments) * (float("nan") if next(count) == 2 else 1)

    learner.loss.forward = spoilt
    run.fit()
    assert_same(seen[3], seen[2])
    assert not torch.equal(seen[2]["head.0.weight"], seen[1]["head.0.weight"])


def test_an_average_begins_with_the_first_step_that_is_not_skipped(base, workplace, assert_same):
    run = make_run([*base, "--losses", EMA])
    (learner,) = run.experiment.learners
    seen, forward, count = [], learner.loss.forward, iter(range(9))

    def spoilt(*arguments):
        seen.append([copy.deepcopy(dict(net.state_dict())) for net in (learner.result, learner.net)])
        return forward(*arguments) * (float("nan") if next(count) < 2 else 1)

    learner.loss.forward = spoilt
    run.fit()
    assert_same(*seen[3])
    assert not torch.equal(seen[3][0]["head.0.weight"], seen[2][0]["head.0.weight"])
    assert int(learner.ema.n_averaged) == 2


@pytest.mark.parametrize("learning", [{"network": {}, "averaged": -1}, {"network": {}, "averaged": 1}, [], {"a": 1}])
def test_a_state_whose_average_does_not_fit(averaged, base, workplace, learning):
    run, _ = averaged
    state = copy.deepcopy(load_checkpoint(run.folder / "last.pt"))
    (learner,) = (x for x in make_run([*base, "--losses", EMA]).experiment.learners)
    with pytest.raises(ValueError, match="last.pt: not a "):
        learner.load_state_dict(state["learners"][EMA] | {"learning": learning}, "last.pt")


# --- validation every N steps, checkpoints that are kept --------------------------------------------------------------


@pytest.fixture(scope="module")
def numbered(base, tmp_path_factory):
    """Seven steps, two an epoch, validated every three, with states of every two that are kept."""
    folder = tmp_path_factory.mktemp("numbered") / "run"
    words = ["--steps", 7, "--validate-every", 3, "--keep-every", 2, "--watch", 1]
    return trained(*base, *words, "--losses", EMA, "L1", "--modelpath", folder)


def validations(run) -> list[int]:
    return [entry["step"] for entry in log_of(run) if entry.get("validation") == "L1"]


def test_validation_every_so_many_steps(numbered, base, workplace, capsys, assert_same):
    assert validations(numbered) == [3, 6, 7]
    assert sorted(path.name for path in (numbered.folder / "watch").iterdir()) == [f"step_{n}.npz" for n in (3, 6, 7)]
    plain = trained(*base, "--losses", EMA, "L1", "--steps", 7)
    assert validations(plain) == [2, 4, 6, 7]
    assert "  epoch 3  L1 " in capsys.readouterr().out
    for one, other in zip(numbered.experiment.learners, plain.experiment.learners):
        assert_same(one.net.state_dict(), other.net.state_dict())


def test_a_run_of_less_than_an_epoch(base, workplace, capsys):
    run = trained(*base, "--losses", "L1", "--repeat", 10, "--steps", 5, "--validate-every", 2)
    assert run.experiment.epoch_steps == 20 and validations(run) == [2, 4, 5]
    assert "  step 4  L1 " in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_run_that_validates_within_an_epoch_resumes_exactly(numbered, base, cut, workplace, at_step, same_files):
    words = ["--steps", 7, "--validate-every", 3, "--keep-every", 2, "--watch", 1, "--losses", EMA, "L1"]
    run = stopped(at_step, 2 * cut - 1, *base, *words, "--modelpath", "parts")
    assert run.state.step == cut
    same_files(trained("--load", "--modelpath", "parts").folder, numbered.folder)


def test_kept_checkpoints_are_the_last_ones_of_their_steps(numbered, base, workplace, assert_same):
    assert sorted(path.stem for path in numbered.folder.glob("step_*")) == ["step_2", "step_4", "step_6"]
    words = ["--steps", 4, "--validate-every", 3, "--losses", EMA, "L1"]
    short, kept = trained(*base, *words), load_checkpoint(numbered.folder / "step_4.pt")
    last = load_checkpoint(short.folder / "last.pt")
    for name, learner in kept["learners"].items():
        last["learners"][name]["best"] = learner["best"]  # the shorter run is validated at its end
    assert_same(kept, last)


def test_a_run_that_is_stopped_before_its_first_step_keeps_nothing(base, workplace):
    run = make_run([*base, "--losses", "L1", "--keep-every", 2])
    batches = run.batches
    run.batches = lambda: (signal.raise_signal(signal.SIGTERM), batches())[1]
    with pytest.raises(stop_signals.Stopped):
        run.fit()
    assert run.state.step == 0 and sorted(path.name for path in run.folder.glob("*.pt")) == ["last.pt"]


def test_a_resumed_run_may_end_where_it_was_stopped(base, workplace, at_step, assert_same):
    """It is validated there, as every run is at its end; one that was is not validated again."""
    args = [*base, "--losses", "L1", "--validate-every", 4]
    stopped(at_step, 1, *args, "--steps", 8, "--modelpath", "parts")
    ended = trained("--load", "--modelpath", "parts", "--steps", 1)
    whole = trained(*args, "--steps", 1, "--modelpath", "whole")
    assert validations(ended) == validations(whole) == [1]
    assert_same(*(load_checkpoint(run.folder / "best_L1.pt") for run in (ended, whole)))
    again = make_run(["--load", "--modelpath", "parts"])
    again.validate = lambda: pytest.fail("validated twice")
    again.fit()


def test_a_run_may_end_at_the_checkpoint_it_goes_back_to(base, workplace):
    """Its best network is then of no later step."""
    args = [*base, "--losses", "L1", "--validate-every", 2, "--keep-every", 2, "--modelpath", "run"]
    assert load_checkpoint(trained(*args, "--steps", 4).folder / "best_L1.pt")["step"] == 4
    ended = trained("--load", "run/step_2.pt", "--steps", 2)
    assert load_checkpoint(ended.folder / "best_L1.pt")["step"] == 2 and validations(ended) == [2]


def test_kept_checkpoints_are_used_by_name(numbered, base, workplace, capsys, assert_same, images):
    import export
    import infer
    import val

    run = str(numbered.folder)
    weights = load_checkpoint(numbered.folder / "step_4.pt")["learners"]["L1"][SR_NETWORK]
    assert_same(dict(load_networks(numbered.folder, "step_4", ["L1"])[1]["L1"].state_dict()), dict(weights))
    of = ["--modelpath", run, "--metrics", "tiny", "--device", "cpu", "--out", "val.json"]
    val.main([*of, "--checkpoint", "step_4.pt", "step_2", "--last"])
    out = capsys.readouterr().out
    assert all(f"L1 {which} " in out for which in ("step_4", "step_2", "last"))
    infer.main(["--input", str(images / "rocket.png"), "--modelpath", run, "--checkpoint", "step_2", "--loss", "L1"]
               + ["--output", "sr", "--device", "cpu"])  # fmt: skip
    assert f"of {run}, step_2 of L1" in capsys.readouterr().out and Path("sr/rocket.png").exists()
    export.main(["--modelpath", run, "--checkpoint", "step_2", "--loss", "L1", "--to", "safetensors"]
                + ["--output", "net.safetensors"])  # fmt: skip
    assert "L1 (step_2)" in capsys.readouterr().out
    for init in (f"{run}/step_4.pt", "net.safetensors"):
        begun = make_run([*base, "--losses", "L1", "--init", init, *["--init-loss", "L1"] * init.endswith(".pt")])
        which = load_checkpoint(numbered.folder / ("step_4.pt" if init.endswith(".pt") else "step_2.pt"))
        assert_same(dict(begun.experiment.learners[0].net.state_dict()), dict(which["learners"]["L1"][SR_NETWORK]))


@pytest.mark.parametrize("words", [["{}/step_4.pt"], ["{}", "--checkpoint", "step_4"]], ids=["file", "name"])
def test_going_back_to_a_kept_checkpoint(numbered, workplace, words, assert_same, capsys):
    shutil.copytree(numbered.folder, "run")
    run = make_run(["--load", *(word.format("run") for word in words)])
    assert run.state.step == 4
    run.fit()
    out = capsys.readouterr().out
    assert "goes back to step_4.pt" in out
    again = "best_L1.pt is of a later step: the next validation replaces it" in out
    assert again == (load_checkpoint(numbered.folder / "best_L1.pt")["step"] > 4)
    for path in Path("run").glob("*.pt"):
        if path.name != "previous.pt":
            assert_same(load_checkpoint(path), load_checkpoint(numbered.folder / path.name), path.name)
    logs = [[entry for entry in log_of(x) if "note" not in entry] for x in (run, numbered)]
    assert logs[0] == logs[1]


def test_checkpoints_that_are_not_there(numbered, base, workplace, capsys):
    for argv in (["--load", f"{numbered.folder}/step_5.pt"], ["--load", str(numbered.folder), "--checkpoint", "5"]):
        with pytest.raises(ValueError, match="--checkpoint .*5: expected one of step_2, step_4, step_6"):
            make_run(argv)
    with pytest.raises(ValueError, match="--checkpoint step_2: expected --load beside it"):
        make_run([*base, "--checkpoint", "step_2"])
    with pytest.raises(SystemExit):
        configs.load(["--load", f"{numbered.folder}/step_4.pt", "--checkpoint", "step_2"])
    assert "--checkpoint names another; leave one out" in capsys.readouterr().err


# --- the learning rate ------------------------------------------------------------------------------------------------


def torch_rates(scheduler, steps: int, **settings) -> list[float]:
    """The rates of a scheduler of torch's, from 0.1 on."""
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, rates = scheduler(opt, **settings), []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("period", [1, 4, 7, 50])
def test_restarts_are_torch_s(period):
    config = configs.load(["--schedule", "restarts", "--restart-every", str(period), "--learning-rate", "0.1"])
    expected = torch_rates(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, 20, T_0=period)
    assert [train.lr_at_step(config, 0, step, 20) for step in range(20)] == pytest.approx(expected)
    assert expected.count(max(expected)) == -(-20 // period)


def test_warm_up_is_torch_s():
    config = configs.load(["--warmup", "5", "--learning-rate", "0.1"])
    expected = torch_rates(torch.optim.lr_scheduler.LinearLR, 9, start_factor=1 / 5, total_iters=4)
    assert [train.lr_at_step(config, 0, step, 9) for step in range(9)] == pytest.approx(expected)


def test_restarts_and_warm_up_in_a_run_that_is_resumed(base, workplace, at_step, same_files):
    words = ["--schedule", "restarts", "--restart-every", 2, "--warmup", 3, "--steps", 6, "--learning-rate", 0.01]
    losses = ["--losses", "L1", "L1[schedule=restarts,restart_every=4,warmup=0,label=four]"]
    whole = trained(*base, *words, *losses, "--modelpath", "whole")
    steps = [entry for entry in log_of(whole) if "loss" in entry]
    assert [x["learning_rate"] for x in steps] == pytest.approx([x * 0.01 for x in (1 / 3, 1 / 3, 1, 0.5, 1, 0.5)])
    own = [x.get("own_learning_rate", {}).get("four", x["learning_rate"]) / 0.01 for x in steps]
    assert own == pytest.approx([(1 + math.cos(math.pi * i / 4)) / 2 for i in (0, 1, 2, 3, 0, 1)])
    stopped(at_step, 2 * 3 - 1, *base, *words, *losses, "--modelpath", "parts")
    same_files(trained("--load", "--modelpath", "parts").folder, whole.folder)
