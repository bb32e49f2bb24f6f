"""What can happen to a run: signals, kills, damaged files, a full disk, a second run, numbers that go wrong.

The kills of real processes, in full: FAULTS=20 python -m pytest tests/test_faults.py -k killed
"""

import copy
import errno
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import runpy
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import configs
import convert
import train
import val
from metrics.backbones import read_backbone_file
from runs import checkpoint, writer
from runs.atomic import atomic_write
from runs.checkpoint import load_checkpoint, load_last, load_networks, serialize
from runs.lock import RunFolderError, check_unlocked, locked_run
from runs.log import trim_log
from runs.writer import RunWriter
from training import stop_signals

KILLS = int(os.environ.get("FAULTS", 1))  # of each kind


def make_run(args, *more) -> train.Trainer:
    return train.Trainer(configs.load([*args, *map(str, more)]))


# --- signals ---


@pytest.mark.parametrize("losses", [["L1+TLW", "L1"], ["L1+UDL", "L1+PSPL"]], ids=" ".join)
def test_stopped_at_any_step_and_resumed(args, losses, at_step, same_files):
    """At the last step of an epoch (4, 8) the state is of before its validation."""
    args = [*args, "--losses", *losses, "--udl-epoch", "1"]
    make_run(args, "--modelpath", "whole").fit()
    for cut in range(1, 9):
        run = make_run(["--load", "--modelpath", "parts"] if cut > 1 else [*args, "--modelpath", "parts"])
        assert run.state.step == cut - 1
        at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(stop_signals.Stopped) as stopped:
            run.fit()
        assert run.state.step == cut and stopped.value.exit_code == 143
    at_step(0, None)  # never
    make_run(["--load", "--modelpath", "parts"]).fit()
    same_files(Path("whole"), Path("parts"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_ends_the_command_with_its_code(args, at_step, number, code, capsys):
    at_step(1, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end:
        train.main([*args, "--modelpath", "run"])
    assert end.value.code == code
    assert f"to resume: python {train.__file__} --load --modelpath run" in capsys.readouterr().out
    assert load_checkpoint(Path("run/last.pt"))["step"] == 1


@pytest.fixture
def stopped_within(monkeypatch, capsys):
    """stopped_within(where, number, command): what command() says that is sent a signal within the function `where`."""

    def check(where: str, number: int, command) -> str:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(where, lambda *_, **__: os.kill(os.getpid(), number), raising=False)
            command()
        out, err = capsys.readouterr()
        assert end.value.code == 128 + number and "Traceback" not in err
        return out

    return check


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_training_and_after_it(args, images, number, stopped_within, monkeypatch):
    name = signal.Signals(number).name
    for where in ("training.experiment.build_learners", "train.print"):
        said = stopped_within(where, number, lambda: train.main(args))
        assert said == f"\nstopped by {name}; nothing was started or written\n" and not list(Path().iterdir())
    train.main([*args, "--modelpath", "run", "--endepoch", "1"])
    for where in (
        "training.figures.weight_maps",
        "training.evaluation.load_networks",
    ):  # the picture of the weights, the table
        said = stopped_within(where, number, lambda: train.main(["--load", "--modelpath", "run"]))
        command = f"python {val.__file__} --modelpath run --best"
        assert said.endswith(f"\nstopped by {name}; the run is complete; next: {command}\n")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(sys, "argv", ["val.py", "--modelpath", "run", "--best", "--device", "cpu"])
    said = stopped_within(
        "training.evaluation.load_networks", number, lambda: runpy.run_path(val.__file__, run_name="__main__")
    )
    assert said == f"run: run (best)\n\nstopped by {name}; the evaluation was not finished\n"


def test_the_command_that_goes_on_and_the_next_one_are_for_a_shell(args, at_step, capsys):
    """As for a folder with a space in its name."""
    folder = "my 'first' run"
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train.main([*args, "--losses", "L1", "--modelpath", folder])
    (command,) = re.findall("to resume: (.*)", capsys.readouterr().out)
    assert shlex.split(command) == ["python", train.__file__, "--load", "--modelpath", folder]
    at_step(0, None)
    train.main(shlex.split(command)[2:])
    (command,) = re.findall("next: (.*?)    ", capsys.readouterr().out)
    assert shlex.split(command)[2:4] == ["--modelpath", folder]


def test_a_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests were started in the background
    with pytest.raises(KeyboardInterrupt), stop_signals.deferred_signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "when, expected",
    [
        ("--save-minutes 0", [4, 8]),
        ("--save-minutes 0 --save-every 3", [3, 4, 6, 8]),
        ("--save-minutes 1e-9", [*range(1, 9)]),
    ],
)
def test_when_it_saves_and_how_often_processes_agree(args, when, expected, monkeypatch):
    """Once in a step, at the end of an epoch and after each network's validation."""
    agreed, saved, run = [], [], make_run(args, "--losses", "L1", *when.split())
    save = run.save
    monkeypatch.setattr(train.distributed, "all_reduce_max", lambda *values: agreed.append(values) or [*values])
    monkeypatch.setattr(run, "save", lambda: saved.append(run.state.step) or save())
    run.fit()
    assert saved == expected and len(agreed) == 8 + 2 * (1 + 1)


# --- files ---


def test_no_flipped_bit_goes_unseen(tmp_path, assert_same):
    state = {"x": torch.arange(4.0), "step": 3}
    path = tmp_path / "last.pt"
    whole = serialize(state)
    seen = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = load_checkpoint(path)
        except ValueError:
            seen += 1
        else:
            assert_same(found, state, str(at))  # padding, or a field of the archive that nobody reads
    assert seen > len(whole) / 4


def test_the_state_before_stands_in_for_a_damaged_one(tmp_path):
    run = RunWriter(tmp_path)
    for step in (1, 2, 3):
        run.queue("last.pt", serialize({"step": step}))
        run.save()
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    assert load_last(tmp_path)[0] == {"step": 3} and load_checkpoint(previous) == {"step": 2}
    last.write_bytes(last.read_bytes()[:-100])
    state, path, wrong = load_last(tmp_path)
    assert state == {"step": 2} and path == previous and "last.pt: cannot be read" in wrong
    run.queue("last.pt", serialize({"step": 4}))
    run.save()
    assert load_checkpoint(previous) == {"step": 2}  # a damaged one does not take its place
    for path in (last, previous):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="last.pt: cannot be read.*nor can the previous one.*start again") as caught:
        load_last(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_state_out_of_reach_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch, number):
    """It may be whole, and what goes on from the one before would replace it."""
    run = RunWriter(tmp_path)
    for step in (1, 2):
        run.queue("last.pt", serialize({"step": step}))
        run.save()

    def load(path, **options):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ValueError, match=rf"last.pt: cannot be read .*{os.strerror(number)}.*; make it readable$"):
        load_last(tmp_path)


def test_a_run_says_that_it_went_on_from_the_state_before(args, capsys):
    make_run(args, "--modelpath", "run", "--losses", "L1").fit()
    Path("run/last.pt").write_bytes(b"torn")
    run = make_run(["--load", "--modelpath", "run"])
    assert (
        run.state.step == 4 and "resumed from previous.pt, step 4" in run.report.summary()[0] in capsys.readouterr().out
    )


def test_a_full_disk_costs_nothing_but_time(tmp_path, monkeypatch, capsys):
    run = RunWriter(tmp_path)
    run.queue("last.pt", serialize({"step": 1}))
    run.save()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for step in (2, 3):
            run.queue("best_L1.pt", serialize({"step": step}))
            run.queue("last.pt", serialize({"step": step}))
            run.save()
    assert load_last(tmp_path)[0] == {"step": 1} and "best_L1.pt, last.pt (No space" in run.unsaved
    assert capsys.readouterr().out.count("training continues") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
    run.save()
    assert run.unsaved is None and load_checkpoint(tmp_path / "best_L1.pt") == {"step": 3}
    assert load_last(tmp_path)[0] == {"step": 3} and "saved again" in capsys.readouterr().out


def test_what_is_not_saved_at_the_end_is_an_error(args, monkeypatch, capsys):
    write = atomic_write

    def full(path, content, **options):
        if path.suffix == ".pt":
            raise OSError(28, "No space left on device")
        write(path, content, **options)

    monkeypatch.setattr(checkpoint, "atomic_write", full)
    monkeypatch.setattr(writer, "atomic_write", full)
    with pytest.raises(SystemExit) as end:
        train.main([*args, "--modelpath", "run", "--losses", "L1"])
    assert end.value.code == 1 and "not saved: best_L1.pt, last.pt (No space left" in capsys.readouterr().err


def test_a_log_line_cut_off_goes(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = ['{"step": 1}\n', '{"step": 2}\n', '{"step": 2, "validation": "L1"}\n', '{"step": 2, "val']
    log.write_text("".join(lines))
    trim_log(log, 2)
    assert log.read_text() == "".join(lines[:3])
    trim_log(log, 2, validated=False)
    assert log.read_text() == "".join(lines[:2])


@pytest.mark.parametrize("line", ["{}", "5", "null", "[1]", '"step"', '{"step": "x"}', '{"step": null}', "[" * 10**5])
def test_a_log_line_that_is_no_runs_goes(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    trim_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


# --- two runs ---


def test_a_second_run_is_refused(tmp_path):
    with locked_run(tmp_path):
        for enter in (lambda: check_unlocked(tmp_path), lambda: locked_run(tmp_path).__enter__()):
            with pytest.raises(RunFolderError, match=f"in use by .*, process {os.getpid()}, since"):
                enter()
    check_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_dead_process_is_none(tmp_path):
    child = os.fork()
    if not child:
        held = locked_run(tmp_path)  # named, or it would end at once
        held.__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert f"process {child}" in (tmp_path / ".lock").read_text()
    check_unlocked(tmp_path)
    with locked_run(tmp_path):
        pass


def test_a_run_that_another_went_on_with_is_left_alone(args):
    make_run(args, "--modelpath", "run", "--losses", "L1", "--endepoch", 1).fit()
    late, first = (make_run(["--load", "--modelpath", "run", "--endepoch", "2"]) for _ in range(2))
    first.fit()
    with pytest.raises(RunFolderError, match="another run"):
        late.fit()


# --- numbers ---


def spoil(learner, steps, what=float("nan")):
    """The learner's loss is not finite in these of its steps, counted from 0."""
    forward, count = learner.loss.forward, iter(range(1000))
    learner.loss.forward = lambda *a: forward(*a) * (what if next(count) in steps else 1)


def test_a_step_whose_loss_is_not_finite_leaves_no_trace(args, assert_same):
    run = make_run(args, "--losses", "L1+TLW", "--steps", 1)
    (learner,) = run.experiment.learners
    before = {name: x.clone() for part in (learner.net, learner.loss) for name, x in part.state_dict().items()}
    spoil(learner, {0})
    run.fit()
    after = {name: x for part in (learner.net, learner.loss) for name, x in part.state_dict().items()}
    assert_same(before, after)
    assert learner.skips.tolist() == [1, 1]
    for opt in (learner.opt, learner.helper_opt):
        assert all(not x.any() for state in opt.state.values() for x in state.values())
    assert run.report.summary() == ["L1+TLW: 1 steps skipped, their loss or gradient not finite"]


@pytest.mark.parametrize("clip", [[], ["--clip-grad", "0.5"]], ids=["", "clipped"])
@pytest.mark.parametrize("of_helper", [False, True])
def test_a_gradient_that_is_not_finite_leaves_no_trace(args, of_helper, clip, assert_same):
    """Of a finite loss, after a good step: weights, both Adams' moments, BatchNorm's statistics, the helper."""
    run = make_run(args, "--model", "SRResNet", "--losses", "L1+TLW", "--steps", 3, *clip)
    (learner,) = run.experiment.learners
    descend, step = learner._guard, train.em_step
    states, losses = [], []

    def check(opt, loss):
        if len(states) == 2 and (opt is learner.helper_opt) == of_helper:
            losses.append(loss.item())
            opt.param_groups[0]["params"][0].grad[..., 0] = float("inf")
        descend(opt, loss)

    def em_step(*arguments):
        states.append(copy.deepcopy(learner.state_dict()))
        return step(*arguments)

    learner._guard = check
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "em_step", em_step)
        run.fit()
    _, before, after = states
    (loss,) = losses
    assert math.isfinite(loss)
    assert before.pop("skips") == [0, 0] and after.pop("skips") == [1, 1]
    assert not torch.equal(
        before.pop("rng_states")["cpu"], after.pop("rng_states")["cpu"]
    )  # the next step draws others
    assert_same(before, after)
    final = learner.state_dict()
    assert final["skips"] == [1, 0]
    moved = [not torch.equal(x, final["sr_network"][name]) for name, x in after["sr_network"].items()]
    assert all(moved)


def test_too_many_in_a_row_stop_the_run_where_it_can_be_repeated(args, images):
    for again in range(2):
        more = ["--load", "--modelpath", "run"] if again else [*args, "--modelpath", "run", "--max-skipped", "2"]
        run = make_run(more)
        spoil(run.experiment.learners[0], {0} if again else {0, 2, 3, 4})
        with pytest.raises(FloatingPointError, match=f"step 5, L1.TLW: .*batch of {images}.*--clip-grad"):
            run.fit()
        assert load_checkpoint(Path("run/last.pt"))["step"] == 4
    make_run(["--load", "--modelpath", "run"]).fit()


def test_gradients_are_clipped(args):
    run = make_run(args, "--losses", "L1", "--clip-grad", 1e-3, "--steps", 1)
    norms, parameters = [], list(run.experiment.learners[0].net.parameters())
    run.experiment.learners[0].opt.register_step_pre_hook(
        lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
    )
    run.fit()
    assert norms == [pytest.approx(1e-3, rel=1e-2)]
    assert all(p.grad is None for p in parameters)


# --- strangers ---


class Bomb:
    """Unpickling it makes the file `ran`."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("plain", [False, True])
def test_no_loader_runs_code(args, workplace, plain):
    make_run(args, "--modelpath", "run", "--losses", "L1", "--steps", 1).fit()
    for name in ("run/last.pt", "run/best_L1.pt", "SRModel_l1.pth"):
        Path(name).write_bytes(pickle.dumps({"net": Bomb()})) if plain else torch.save({"net": Bomb()}, name)
    released = convert.parse(["SRModel_l1.pth", "--scale", "4"])
    released.path = Path(released.path)
    for load in (
        lambda: make_run(["--load", "--modelpath", "run"]),
        lambda: load_networks(Path("run"), "best"),
        lambda: load_networks(Path("run"), "last"),
        lambda: read_backbone_file("run/last.pt"),  # --judge-weights, --extractor-weights
        lambda: convert.convert(released),
    ):
        with pytest.raises(ValueError, match="cannot be read as"):
            load()
    assert not Path("ran").exists()


# --- kills ---


def lines_of(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


@pytest.mark.parametrize("loss", ["L1+TLW", "L1+UDL", "L1+DP+GAN"])
def test_killed_at_random_moments(args, loss, alex_file, same_files):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["train"])
    epochs = max(2, KILLS)
    args = [
        *args,
        "--losses",
        loss,
        "--dp-extractors",
        "alexnet:conv2",
        "--extractor-weights",
        str(alex_file),
        "--endepoch",
        str(epochs),
        "--udl-epoch",
        "1",
        "--save-every",
        "1",
    ]

    def begin(*arguments):
        process = processes.Process(target=train.main, args=([*arguments],))
        process.start()
        return process

    whole = begin(*args, "--modelpath", "whole")
    whole.join()
    assert whole.exitcode == 0
    log, draw = Path("parts/log.jsonl"), random.Random(loss)
    for kill in range(KILLS + 1):
        started = any(Path("parts").glob("*.pt"))
        process = begin(*(["--load"] if started else args), "--modelpath", "parts")
        if kill < KILLS:
            lines = lines_of(log)
            while lines_of(log) in range(lines + 1) and process.is_alive():
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.3))
            process.kill()
        process.join()
    assert process.exitcode == 0
    same_files(Path("whole"), Path("parts"))
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 4 * epochs
