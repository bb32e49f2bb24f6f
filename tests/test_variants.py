"""Losses with settings of their own: what is read, what is refused, and that each is a training of its own."""

import dataclasses
import signal
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn

import configs
import train
import val
from configs import Config
from configs.variants import OPTIMIZER, TERMS
from losses import build_loss
from runs.checkpoint import load_checkpoint
from runs.evaluations import read_evaluations
from tests.conftest import log_without_clocks
from training import stop_signals
from training.learner import Learner, build_learners
from training.reporter import missing_controls

CHEAP = "L1+TLW[weights=shuffled,samples=1,e_every=3,reuse_mu=true,weighting_scale=2,weighting_channels=8,label=cheap]"
FAST = "L1[learning_rate=8e-4,schedule=cosine]"
LOSSES = ["L1", FAST, "L1+TLW", "L1+TLW[weights=uniform]", "L1+TLW[wc=normalised,label=TLW-n]", CHEAP]
NAMES = ["L1", FAST, "L1+TLW", "L1+TLW[weights=uniform]", "TLW-n", "cheap"]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_names_losses_and_settings():
    config = configs.load(["--learning-rate", "1e-3", "--samples", "2", "--losses", *LOSSES])
    variants = config.variants
    assert list(variants) == NAMES
    assert [variant.loss for variant in variants.values()] == ["L1", "L1"] + ["L1+TLW"] * 4
    assert variants["L1"].config is config is variants["L1+TLW"].config
    own = variants["cheap"].config
    assert (own.weights, own.samples, own.e_every, own.reuse_mu, own.weighting_scale) == ("shuffled", 1, 3, True, 2)
    assert (own.learning_rate, own.wc, config.weights, config.samples) == (1e-3, "sum", "learned", 2)
    assert (variants[FAST].config.learning_rate, variants[FAST].config.schedule) == (8e-4, "cosine")


def test_values_are_those_of_flags_and_yaml(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "losses:\n- L1\n- L1+UDL[udl-plus-one=false, betas=[0.8,0.99], clip_grad=2,label=a.b]\n"
        "- MSE[milestones=[3,5],schedule=milestones]\nclip_grad: 1\n"
    )
    config = configs.load(["--config", str(tmp_path / "c.yaml")])
    udl, mse = config.variants["a.b"], config.variants["MSE[milestones=[3,5],schedule=milestones]"]
    assert (udl.config.udl_plus_one, udl.config.betas, udl.config.clip_grad) == (False, (0.8, 0.99), 2.0)
    assert (mse.config.milestones, mse.config.clip_grad, mse.loss) == ((3, 5), 1.0, "MSE")
    assert config.variants["L1"].config.betas == (0.5, 0.999)
    (tmp_path / "again.yaml").write_bytes(configs.to_yaml(config))
    again = configs.load(["--config", str(tmp_path / "again.yaml")])
    assert again == config and again.variants == config.variants


def test_each_setting_is_of_the_run_or_of_a_loss():
    own = {*OPTIMIZER, *chain.from_iterable(TERMS.values())}
    of_run = {
        "model", "model_options", "scale", "init", "init_loss", "init_best", "init_weighting", "losses",
        "judge", "judge_weights", "judge_memory",
        "extractor_weights", "trainpath", "lrpath", "valpath", "vallrpath", "patch", "bad_images", "skip_small",
        "augment", "repeat", "batchsize", "workers", "max_skipped", "startepoch", "endepoch", "steps", "seed",
        "precision", "compile", "deterministic", "device", "modelpath", "load", "save_every", "save_minutes", "metrics",
        "protocol", "log_every", "watch", "tensorboard", "color", "accumulate", "validate_every", "keep_every", "checkpoint",
        "best_by", "on_divergence", "auto_resume", "cache", "cache_size",
        "lr_template", "degradation", "tiles",
    }  # fmt: skip
    assert not own & of_run and own | of_run == {field.name for field in dataclasses.fields(Config)}


def test_spaces_are_not_of_the_name():
    assert list(Config(losses=("L1 [ learning_rate = 8e-4 ]",)).variants) == ["L1[learning_rate=8e-4]"]
    assert Config(losses=("L1[clip_grad=null]",), clip_grad=1.0).variants["L1[clip_grad=null]"].config.clip_grad is None


@pytest.mark.parametrize(
    "losses, words",
    [
        (["L1["], "--losses L1[: expected LOSS[SETTING=VALUE,...], such as 'L1+TLW[weights=uniform]'"),
        (["L1[]"], "expected LOSS[SETTING=VALUE,...]"),
        (["[learning_rate=1]"], "expected LOSS[SETTING=VALUE,...]"),
        (["L1]learning_rate=1["], "expected LOSS[SETTING=VALUE,...]"),
        (["L1[learning_rate=1]x"], "expected LOSS[SETTING=VALUE,...]"),
        (["L1[learning_rate]"], "learning_rate: expected NAME=VALUE, such as weights=uniform"),
        (["L1[learning_rate=1,learning_rate=2]"], "learning_rate is given twice"),
        (["L1[learning_rat=1]"], "unknown setting of a loss 'learning_rat'; did you mean learning_rate?"),
        (["L1[patch=48]"], "--losses L1[patch=48]: patch cannot be set for L1 alone; these can: learning_rate, betas, "
                           "schedule, step_epochs, step_gamma, milestones, clip_grad"),
        (["L1+TLW[judge=tiny]"], "judge cannot be set for L1+TLW alone; these can: learning_rate, "),
        (["L1[weights=uniform]"], "weights cannot be set for L1 alone"),
        (["L1+TLW[udl_epoch=3]"], "udl_epoch cannot be set for L1+TLW alone"),
        (["L1[losses=MSE]"], "losses cannot be set for L1 alone"),
        (["L1[learning_rate=-1]"], "--losses L1[learning_rate=-1]: --learning-rate -1.0: expected a number above 0"),
        (["L1[learning_rate=fast]"], "--learning-rate 'fast': expected a number"),
        (["L1[schedule=milestones]"], "--schedule milestones: expected --milestones beside it"),
        (["L1+TLW[weights=flat]"], "--weights flat: expected one of learned, uniform, shuffled, inverted"),
        (["L1+TLW[e_every=0]"], "--e-every 0: expected a whole number from 1"),
        (["L1+TLW[k_start=0.95]"], "--k-end 0.9: expected at least k_start=0.95"),
        (["L1+TLW[wc=normalised,m_step=released]"], "--wc normalised: expected sum or one beside --m-step released"),
        (["L1[learning_rate=1,label=a/b]"], "not usable as a file name; expected one label=NAME, of letters"),
        (["L1[label=]"], "not usable as a file name"),
        (["L1[label=a,label=b]"], "expected one label=NAME"),
        (["L1[label=a=b]"], "not usable as a file name"),
        (["L1[label=" + "x" * 101 + "]"], "not usable as a file name"),
        (["L1+DP[dp_extractors=alexnet:conv5]"], "not usable as a file name; expected one label=NAME"),
        (["L1", "L1[learning_rate=1,label=L1]"], "expected each loss once, or label=NAME in it"),
        (["L1+TLW[samples=1,label=a]", "L1+TLW[samples=2,label=A]"], "expected each loss once, or label=NAME in it"),
    ],
)  # fmt: skip
def test_what_is_refused(capsys, losses, words):
    with pytest.raises(SystemExit) as caught:
        configs.load(["--losses", *losses])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "") and err.count("\n") == 1 and words in err, err


@pytest.mark.parametrize("label", ["MSE", "bicubic"])
def test_a_label_that_is_something_else(label):
    with pytest.raises(ValueError, match=f"a label other than {label}"):
        build_learners(Config(losses=(f"L1[learning_rate=1,label={label}]",)), torch.device("cpu"))


def test_a_loss_that_there_is_not():
    with pytest.raises(ValueError, match="unknown loss 'L1.TWL'; did you mean L1.TLW"):
        build_learners(Config(losses=("L1+TWL[learning_rate=1]",)), torch.device("cpu"))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def args(tiny_args):
    """Two epochs of two steps, with all of LOSSES; the judge's weights are those of the package."""
    return [*tiny_args, "--losses", *LOSSES, "--judge", "tiny", "--metrics", "tiny", "--endepoch", "2"]


@pytest.fixture(scope="module")
def whole(args, tmp_path_factory) -> train.Trainer:
    """The run, uninterrupted."""
    return trained([*args, "--modelpath", str(tmp_path_factory.mktemp("variants") / "whole")])


def trained(argv) -> train.Trainer:
    run = train.Trainer(configs.load(list(map(str, argv))))
    run.fit()
    return run


def log_of(run) -> list[dict]:
    return log_without_clocks(run.folder)


def test_each_has_its_checkpoint_and_its_lines(whole):
    assert {path.name for path in whole.folder.glob("best_*.pt")} == {f"best_{name}.pt" for name in NAMES}
    steps = [entry for entry in log_of(whole) if "loss" in entry]
    assert len(steps) == 4 and all(list(entry["loss"]) == NAMES for entry in steps)
    assert all(len({entry["loss"][name] for name in NAMES}) == len(NAMES) for entry in steps[1:])
    criteria = [list(entry["WC"]) for entry in steps]
    assert criteria[2] == ["L1+TLW", "TLW-n", "cheap"]  # whose E-step is in every third step
    assert [criteria[i] for i in (0, 1, 3)] == [["L1+TLW", "TLW-n"]] * 3
    assert [entry["learning_rate"] for entry in steps] == [1e-4] * 4
    own = [entry["own_learning_rate"] for entry in steps]
    assert all(list(rates) == [FAST] for rates in own)
    assert [rates[FAST] for rates in own] == pytest.approx([8e-4, 6.8284e-4, 4e-4, 1.1716e-4], rel=1e-3)
    judges = {name: load_checkpoint(whole.folder / f"best_{name}.pt")["judges"] for name in NAMES}
    assert judges == dict.fromkeys(NAMES[:2], []) | dict.fromkeys(NAMES[2:], ["tiny"])


def test_all_begin_from_the_same_networks_and_draw_from_a_stream_of_their_own(args, assert_same):
    learners = {learner.name: learner for learner in build_learners(configs.load(args), torch.device("cpu"))}
    for learner in learners.values():
        assert_same(learner.net.state_dict(), learners["L1"].net.state_dict())
    assert_same(learners["TLW-n"].loss.state_dict(), learners["L1+TLW"].loss.state_dict())
    streams = [learner.rng_states["cpu"] for learner in learners.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(streams) for b in streams[:i])


@pytest.mark.parametrize("loss, name", [("L1+TLW", "L1+TLW"), (CHEAP, "cheap"), (FAST, FAST)])
def test_alone_or_among_others_is_the_same(args, whole, loss, name, workplace, assert_same):
    alone = trained([*args, "--losses", loss])
    among = next(learner for learner in whole.experiment.learners if learner.name == name)
    assert_same(alone.experiment.learners[0].state_dict(), among.state_dict())


def test_settings_of_the_run_and_of_a_loss_are_the_same(args, whole, workplace, assert_same):
    """All but the stream, which is that of the name."""
    own, of_run = (
        trained([*args, "--modelpath", place, "--losses", loss, *more]).experiment.learners[0].state_dict()
        for place, loss, more in (
            ("own", "L1+TLW[weights=uniform,learning_rate=3e-4]", []),
            ("run", "L1+TLW", ["--weights", "uniform", "--learning-rate", "3e-4"]),
        )
    )
    assert own.pop("rng_states") and of_run.pop("rng_states")
    assert_same(own, of_run)


@pytest.mark.parametrize("cut", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(args, whole, cut, workplace, at_step, same_files):
    """Stopped between two E-steps, of which one is in every third step."""
    at_step((cut - 1) * len(LOSSES) + 1, lambda: signal.raise_signal(signal.SIGTERM))
    run = train.Trainer(configs.load([*args, "--modelpath", "parts"]))
    with pytest.raises(stop_signals.Stopped):
        run.fit()
    assert run.state.step == cut
    resumed = trained(["--load", "--modelpath", "parts"])
    same_files(resumed.folder, whole.folder)


def test_another_set_of_losses_is_another_run(args, whole, capsys):
    for loss in ("L1+TLW[weights=inverted]", "L1+TLW[wc=one,label=cheap]"):
        with pytest.raises(SystemExit):
            configs.load(["--load", "--modelpath", str(whole.folder), "--losses", *LOSSES[:-1], loss])
        assert "the run was started with L1 " in capsys.readouterr().err


def test_evaluation_by_names_and_labels(whole, capsys, tmp_path):
    at = ["--modelpath", str(whole.folder), "--metrics", "tiny", "--device", "cpu", "--out", str(tmp_path / "val.json")]
    for more in ([], ["--best"]):
        val.main([*at, *more, "--losses", "cheap", "L1+TLW[weights=uniform]"])
        rows = read_evaluations(tmp_path / "val.json")[-1]["rows"]
        assert [row["loss"] for row in rows] == ["bicubic", "cheap", "L1+TLW[weights=uniform]"]
    val.main(at)
    assert [row["loss"] for row in read_evaluations(tmp_path / "val.json")[-1]["rows"]] == ["bicubic", *NAMES]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        val.main([*at, "--losses", CHEAP])
    assert "unknown loss in" in (err := capsys.readouterr().err) and "TLW-n, cheap" in err


def test_no_e_step_leaves_the_weighting_network_alone(args, assert_same):
    (learner,) = build_learners(configs.load([*args, "--losses", CHEAP]), torch.device("cpu"))
    helper, learned = learner.loss.helper, []
    for step in range(7):
        hr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1
        before = [p.detach().clone() for p in helper.parameters()]
        net = [p.detach().clone() for p in learner.net.parameters()]
        learner.loss.begin_step(step)
        with learner.skip_non_finite():
            target = train.Target.judged_by(lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)), hr)
            helper_loss, _ = train.em_step(learner, torch.nn.functional.avg_pool2d(hr, 4), target, 0)
        learned.append(helper_loss is not None)
        assert [torch.equal(a, b) for a, b in zip(before, helper.parameters())] == [not learned[-1]] * len(before)
        assert not any(torch.equal(a, b) for a, b in zip(net, learner.net.parameters()))
    assert learned == [False, False, True, False, False, True, False]
    assert {int(state["step"]) for state in learner.helper_opt.state.values()} == {2}


def test_extractors_of_all_losses_are_built(tiny_args, alex_file, squeeze_file, workplace):
    more = ["--losses", "L1+DP", "L1+DP[dp_extractors=[alexnet:conv1],dp_mu=2,label=other]", "--dp-extractors",
            "alexnet:conv2", "squeezenet:fire3", "--extractor-weights", str(alex_file), str(squeeze_file)]  # fmt: skip
    run = train.Trainer(configs.load([*tiny_args, *more]))
    assert list(run.experiment.extractors) == ["alexnet:conv2", "squeezenet:fire3", "alexnet:conv1"]
    judges = [learner.judges for learner in run.experiment.learners]
    assert judges == [["alexnet:conv2", "squeezenet:fire3"], ["alexnet:conv1"]]


# --- the note on controls ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "losses, missing",
    [
        (["L1", "L1+TLW"], "'L1+TLW[weights=uniform]'"),
        (["L1", "MSE", "L1+TLW", "MSE+TLW"], "'L1+TLW[weights=uniform]' 'MSE+TLW[weights=uniform]'"),
        (["L1", "L1+TLW[wc=normalised]"], "'L1+TLW[weights=uniform]'"),
        (["L1", "L1+TLW", "L1+TLW[weights=inverted]"], "'L1+TLW[weights=uniform]'"),
        (["L1", "L1+TLW", "L1+TLW[weights=uniform]"], None),
        (["L1", "L1+TLW", "L1+TLW[weights=shuffled,label=s]"], None),
        (["L1+TLW"], None), (["MSE", "L1+TLW"], None), (["L1", "MSE"], None), (["L1", "L1+TLW[weights=uniform]"], None),
        (["L1+DP", "L1+TLW+DP"], "'L1+TLW+DP[weights=uniform]'"),
    ],
)  # fmt: skip
def test_the_control_that_is_missing(losses, missing):
    expected = [f"no control of the weights: add {missing} to tell the map's gain from WC's"] if missing else []
    assert missing_controls(Config(losses=tuple(losses))) == expected


def test_the_note_is_said_at_the_end(tiny_args, workplace, capsys):
    args = [word for word in tiny_args if word != "--judge-weights" and not word.endswith(".pth")]
    train.main([*args, "--judge", "tiny", "--metrics", "tiny", "--steps", "1", "--modelpath", "run"])
    lines = capsys.readouterr().out.splitlines()
    notes = [line for line in lines if line.startswith("note: ")]
    assert notes == ["note: no control of the weights: add 'L1+TLW[weights=uniform]' to tell the map's gain from WC's"]
    assert Path("run/weights.png").exists()


class Normalised(nn.Module):
    """A network with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward_with_features(self, lr):
        sr = self.norm(lr)
        return sr, sr


def test_a_skipped_step_leaves_the_average_s_batchnorm_as_it_was():
    config = Config(losses=("L1",), ema=0.9)
    learner = Learner("L1", Normalised(), build_loss("L1", config, None), config.variants["L1"], torch.device("cpu"))
    with learner.skip_non_finite():
        sr, _ = learner.forward_with_features(torch.full((2, 3, 8, 8), torch.nan))
        learner.backward_and_step(learner.opt, sr.mean())
        learner.update_average()
    assert all(buffer.isfinite().all() for buffer in learner.ema.module.buffers())
