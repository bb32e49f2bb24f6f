"""States that do not fit are refused before anything of them is taken up, in one line that names the file and the part."""

import copy
import re
from pathlib import Path

import pytest
import torch

import configs
import train
from runs.checkpoint import load_checkpoint, load_networks, save_checkpoint


@pytest.fixture(scope="module")
def trained(tiny_args, tmp_path_factory):
    """A run of one step, L1+UDL and L1+TLW, and its last.pt's state."""
    folder = tmp_path_factory.mktemp("trained")
    argv = [*tiny_args, "--losses", "L1+TLW", "L1+UDL", "--steps", "1", "--modelpath", str(folder / "run")]
    train.Trainer(configs.load(argv)).fit()
    return folder / "run", load_checkpoint(folder / "run" / "last.pt")


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


def test_the_optimizer_s_settings_are_the_run_s(trained):
    """Those in the file, which may be any, are not taken up."""
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
