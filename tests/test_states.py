"""States that do not fit are refused in one line that names the file and the part, and nothing of them is loaded."""

import copy
import io
import re
from pathlib import Path

import pytest
import torch

import configs
import train
from runs.checkpoint import load_checkpoint, load_networks, save_checkpoint, serialize


@pytest.fixture(scope="module")
def settings(tiny_args, tmp_path_factory):
    """Flags of a run of one step, L1+UDL and L1+TLW, both with an average."""
    losses = ("--losses", "L1+TLW", "L1+UDL", "--ema", "0.9")
    return [*tiny_args, *losses, "--steps", "1", "--modelpath", str(tmp_path_factory.mktemp("trained") / "run")]


@pytest.fixture(scope="module")
def trained(settings):
    """The folder of that run, and its last.pt's state."""
    folder = Path(settings[-1])
    train.Trainer(configs.load(settings)).fit()
    return folder, load_checkpoint(folder / "last.pt")


@pytest.fixture(scope="module")
def untrained(settings):
    """The state of a run before its first step: nothing of it is as in the trained one."""
    return train.Trainer(configs.load([*settings, "--modelpath", f"{settings[-1]}_untrained"])).state


def moment(state, loss="L1+TLW", opt="opt"):
    return state["learners"][loss][opt]["state"][0]


def tensors_of(state, part, loss="L1+TLW"):
    weights = state["learners"][loss][part]
    return next((weights, name) for name, value in weights.items() if value.is_floating_point() and value.ndim)


def as_type(part, dtype):
    def change(state):
        weights, name = tensors_of(state, part)
        weights[name] = weights[name].to(dtype)

    return change


def put(path, value):
    """Set what stands at the path of keys in a state."""

    def change(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value

    return change


TLW = ("learners", "L1+TLW")
WRONG = {
    "moments of another shape": lambda s: moment(s).update(exp_avg=torch.zeros(3)),
    "moments of one element": lambda s: moment(s).update(exp_avg_sq=torch.zeros(1)),
    "moments of the helper": lambda s: moment(s, opt="helper_opt").update(exp_avg=torch.zeros(3)),
    "moments of another type": lambda s: moment(s).update(exp_avg=moment(s)["exp_avg"].half()),
    "no moment": lambda s: moment(s).pop("exp_avg"),
    "another moment": lambda s: moment(s).update(max_exp_avg_sq=torch.zeros(3)),
    "a count of steps that is no scalar": lambda s: moment(s).update(step=torch.ones(3)),
    "moments of no parameter": lambda s: s["learners"]["L1+TLW"]["opt"]["state"].update({9999: {}}),
    "no moments": put((*TLW, "opt"), {}),
    "an optimizer of None": put((*TLW, "helper_opt"), None),
    "half the network": as_type("sr_network", torch.half),
    "an integer network": as_type("sr_network", torch.long),
    "a complex network": as_type("sr_network", torch.complex64),
    "an integer loss": as_type("loss", torch.int32),
    "no loss": put((*TLW, "loss"), {}),
    "a stage of two numbers": put(("learners", "L1+UDL", "loss", "_extra_state"), torch.tensor([1, 2])),
    "a stage beyond the second": put(("learners", "L1+UDL", "loss", "_extra_state"), torch.tensor(3)),
    "a short stream": put((*TLW, "rng_states"), {"cpu": torch.zeros(3, dtype=torch.uint8)}),
    "a stream of another type": put((*TLW, "rng_states"), {"cpu": "0"}),
    "no stream": put((*TLW, "rng_states"), {}),
    "a best that is not a number": put((*TLW, "best"), float("nan")),
    "a best of words": put((*TLW, "best"), "x"),
    "three counts": put((*TLW, "skips"), [1, 2, 3]),
    "a count beyond 64 bits": put((*TLW, "skips"), [2**2000, 0]),
    "half a network": put((*TLW, "learning", "network"), {}),
    "an average of no count": put((*TLW, "learning"), {"network": {}, "averaged": 2**63}),
    "half a step": put(("step",), 3.5),
    "a step before the first": put(("step",), -3),
    "a step that is true": put(("step",), True),
    "no step": lambda s: s.pop("step"),
    "a number as selection_criterion": put(("selection_criterion",), 5),
    "words for validated": put(("validated",), "no"),
    "images of words": put(("images",), "all"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_state_that_does_not_fit_is_refused(trained, change):
    run, state = trained
    state = copy.deepcopy(state)
    change(state)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    last = before["last.pt"]
    save_checkpoint(state, run / "last.pt")
    (run / "previous.pt").unlink(missing_ok=True)
    try:
        with pytest.raises(ValueError, match=re.escape(f"{run / 'last.pt'}: not a ")) as error:
            train.Trainer(configs.load(["--load", "--modelpath", str(run)]))
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
    finally:
        (run / "last.pt").write_bytes(last)


# Of another run: in the same words as before, for they are right states.
OTHER = {
    "epochs of other lengths": (put(("epoch_steps",), 7), "has 7 steps per epoch"),
    "a step beyond the last": (put(("step",), 2), "is at step 2, beyond 1"),
    "one loss less": (lambda s: s["learners"].pop("L1+UDL"), "has the losses L1+TLW"),
    "another network": (put(("learners", "L1+UDL", "model_id"), "RCAN x4"), "a checkpoint of RCAN x4"),
    "other images": (put(("images",), [1, 2]), "was trained on 2 images"),
}


@pytest.mark.parametrize(
    "change, words", [(c, "not a ") for c in WRONG.values()] + [*OTHER.values()], ids=[*WRONG, *OTHER]
)
def test_nothing_of_a_refused_state_is_loaded(trained, untrained, change, words):
    """Weights, moments, averages, random streams, counts, step, best and the order of the images stay as they were."""
    run, state = trained
    state = copy.deepcopy(state)
    state["images"] = state["images"][::-1]
    for learner in state["learners"].values():
        learner["skips"] = [3, 1]
    change(state)
    before = serialize(untrained.state_dict())
    stages = [(name, p.requires_grad) for x in untrained.experiment.learners for name, p in x.loss.named_parameters()]
    try:
        with pytest.raises(ValueError, match=re.escape(words)):
            untrained.load_state_dict(state, run / "last.pt")
        assert serialize(untrained.state_dict()) == before
        after = [
            (name, p.requires_grad) for x in untrained.experiment.learners for name, p in x.loss.named_parameters()
        ]
        assert stages == after
    finally:  # for the next one, if something was loaded
        untrained.load_state_dict(torch.load(io.BytesIO(before), weights_only=True), run / "before.pt")


def test_moments_are_laid_out_as_their_parameters(trained, settings):
    """One number for all of a moment takes 4 bytes of the file; a fused Adam would write where the others would be."""
    run, state = trained
    state = copy.deepcopy(state)
    entry = moment(state)
    entry["exp_avg"] = torch.tensor(0.5).expand(entry["exp_avg"].shape)
    found = train.Trainer(configs.load([*settings, "--modelpath", f"{settings[-1]}_moments"])).state
    found.load_state_dict(state, run / "last.pt")
    opt = found.experiment.learners[0].opt
    for parameter, moments in opt.state.items():
        assert all(moments[name].stride() == parameter.stride() for name in ("exp_avg", "exp_avg_sq"))
    assert opt.state[opt.param_groups[0]["params"][0]]["exp_avg"].eq(0.5).all()


def test_the_optimizer_s_settings_are_the_run_s(trained):
    """Those in the file, which may be any, are not loaded."""
    run, state = trained
    state, last = copy.deepcopy(state), (run / "last.pt").read_bytes()
    for learner in state["learners"].values():
        learner["opt"]["param_groups"][0].update(betas=(5, 6), eps="x", fused=None)
    save_checkpoint(state, run / "last.pt")
    try:
        found = train.Trainer(configs.load(["--load", "--modelpath", str(run)]))
    finally:
        (run / "last.pt").write_bytes(last)
    group = found.experiment.learners[0].opt.param_groups[0]
    assert group["betas"] == found.config.betas and group["eps"] == 1e-8 and group["fused"] is True
    saved = state["learners"]["L1+TLW"]["opt"]["state"]
    for number, entry in found.experiment.learners[0].opt.state_dict()["state"].items():
        assert all(torch.equal(entry[name], saved[number][name]) for name in entry)


def test_best_of_another_type_is_no_checkpoint(trained):
    run, _ = trained
    path = run / "best_L1+TLW.pt"
    content, state = path.read_bytes(), load_checkpoint(path)
    state["sr_network"] = {name: value.mul(1000).long() for name, value in state["sr_network"].items()}
    save_checkpoint(state, path)
    try:
        with pytest.raises(ValueError, match="not a checkpoint of EDSR"):
            load_networks(Path(run), "best")
    finally:
        path.write_bytes(content)
