"""Several processes train one run: they give what one gives, stop together, and one that dies ends the others.

Most of them are started here as torchrun starts them, but from a server that has imported torch already.
"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import configs
import losses
import train
from data import PairedDataset
from losses import global_batch
from losses.discriminator import VGGDiscriminator
from metrics import references
from runs.checkpoint import SR_NETWORK, load_checkpoint
from runs.lock import locked_run
from tests.conftest import log_without_clocks
from training.learner import build_learners

ROOT = Path(__file__).parents[1]
CHEAP = "L1+TLW[weights=shuffled,wc=normalised,samples=2,e_every=2,reuse_mu=true,weighting_scale=2,label=cheap]"
NAMES = ["L1+TLW", "L1+UDL", "L1+DP", "L1+DP+GAN", CHEAP, "L1[ema=0.5,label=average]"]


# --- processes ---


def process(rank: int, count: int, port: int, work, *args) -> None:
    """Be a process that torchrun has started; what it says goes into out_RANK and err_RANK."""
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in local.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    with (
        open(f"out_{rank}", "w", buffering=1) as out,
        open(f"err_{rank}", "w", buffering=1) as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        work(*args)


def smooth_main(argv: list[str], rank: int = -1, call: int = 0, happens=None) -> None:
    """train.main where rounding stays small: Adam's first step is the gradient's sign, even of one that should be 0,
    and TLW's samples are nearly binary, a step on which rounding can fall on either side; a ReLU's gradient is another.

    In process `rank`, in its call number `call` of em_step, happens() is called.
    """
    step, calls = train.em_step, iter(range(1, 1000))

    def em_step(*arguments):
        if next(calls) == call and os.environ["RANK"] == str(rank):
            happens()
        return step(*arguments)

    train.em_step = em_step
    torch.optim.Adam = partial(torch.optim.Adam, eps=1e-3)
    losses.tlw.relaxed_bernoulli = partial(losses.tlw.relaxed_bernoulli, temperature=1.0)
    nn.ReLU = nn.SiLU
    losses.VGGDiscriminator = partial(VGGDiscriminator, channels=4)
    train.main(argv)


def main_without_batch_norm(argv: list[str]) -> None:
    """smooth_main of networks without BatchNorm."""
    nn.BatchNorm2d = lambda channels: nn.Identity()
    smooth_main(argv)


def start(count: int, work, *args) -> list:
    """`count` processes that do work(*args) together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train"])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = [context.Process(target=process, args=(rank, count, port, work, *args)) for rank in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # else the server could not import `train`, and says nothing
        for one in started:
            one.start()
    return started


def codes(started, seconds: float = 300) -> list[int]:
    """The exit codes; it is an error if one has none yet after so many seconds."""
    end = time.monotonic() + seconds
    for one in started:
        one.join(max(0, end - time.monotonic()))
    found = [one.exitcode for one in started]
    for one in started:
        one.kill()
    assert None not in found, f"{found} after {seconds} s"
    return found


def wait_for_steps(folder: Path, count: int) -> None:
    """Until the run's log has a line of step `count`."""
    end = time.monotonic() + 120
    while not any(x["step"] >= count for x in log_of(folder)):
        assert time.monotonic() < end
        time.sleep(0.002)


def log_of(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.fixture(scope="module")
def args(tiny_args, alex_file, squeeze_file):
    """Three epochs of two steps of four images; UDL goes over to its second stage after the first epoch.

    The judge is `tiny`: the gradient of one with random weights has leaps, of 7e-3 for a rounding of 1e-6.
    """
    return [
        *tiny_args,
        "--losses",
        *NAMES,
        "--judge",
        "tiny",
        "--lpips",
        "squeeze",
        "--batchsize",
        "4",
        "--repeat",
        "2",
        "--endepoch",
        "3",
        "--dp-extractors",
        "alexnet:conv2",
        "squeezenet:fire3",
        "--extractor-weights",
        str(alex_file),
        str(squeeze_file),
        "--gan",
        "ragan",
        "--gan-weight",
        "0.5",
        "--pretrain-epochs",
        "0.5",
        "--udl-minimum",
        "batch",
        "--udl-restart",
        "--udl-epoch",
        "1",
        "--learning-rate",
        "1e-4",
        "--save-every",
        "1",
    ]


def uninterrupted(count: int, args, folder: Path) -> Path:
    """The run of `count` processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert codes(start(count, smooth_main, [*args, "--modelpath", "run"])) == [0] * count
    return folder / "run"


@pytest.fixture(scope="module")
def alone(args, tmp_path_factory):
    """The run of a single process."""
    return uninterrupted(1, args, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(args, tmp_path_factory):
    """The run of two."""
    return uninterrupted(2, args, tmp_path_factory.mktemp("together"))


def assert_close(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Two runs have the same losses, scores and weights, up to the rounding of float32."""
    for a, b in zip(log_without_clocks(one), log_without_clocks(other), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == (
                b[name] if isinstance(b[name], str) else pytest.approx(b[name], rel=tolerance, abs=tolerance)
            ), name
    a, b = (load_checkpoint(run / "last.pt") for run in (one, other))
    assert a["step"] == b["step"] and a["learners"].keys() == b["learners"].keys()
    for name in a["learners"]:
        for part in (SR_NETWORK, "loss"):
            close(a["learners"][name][part], b["learners"][name][part], f"{name}: {part}", tolerance)
        assert torch.equal(a["learners"][name]["rng_states"]["cpu"], b["learners"][name]["rng_states"]["cpu"])


def close(a: dict, b: dict, where: str, tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.allclose(value.float(), b[key].float(), rtol=tolerance, atol=tolerance), f"{where}: {key}"


# --- the same as one ---


def test_two_processes_give_what_one_gives(args, alone, together, monkeypatch):
    assert_close(alone, together)
    assert {x.name for x in together.iterdir()} == {x.name for x in alone.iterdir()}
    first, second = ((together.parent / f"out_{rank}").read_text() for rank in range(2))
    assert first.count("epoch 2  L1+TLW ") == 1 and second == ""
    assert [entry["stage"]["L1+UDL"] for entry in log_of(alone) if "loss" in entry] == [1, 1, 2, 2, 2, 2]
    last = load_checkpoint(alone / "last.pt")["learners"]
    monkeypatch.setattr(losses, "VGGDiscriminator", partial(VGGDiscriminator, channels=4))
    for learner in build_learners(configs.load(args), torch.device("cpu")):  # as all began
        for part, module in ((SR_NETWORK, learner.net), ("loss", learner.loss)):
            began = dict(module.named_parameters())
            moved = [(last[learner.name][part][key] - value).abs().max() for key, value in began.items()]
            assert not moved or max(moved) > 1e-4, (learner.name, part)  # by far more than the tolerance


def test_two_processes_accumulate_what_one_has_in_a_batch(args, workplace):
    few = ["L1", "L1+TLW", "L1+TLW[weights=shuffled,e_every=2,reuse_mu=true,label=cheap]"]
    args = [*args, "--losses", *few, "--endepoch", "1", "--repeat", "8"]
    assert codes(start(1, main_without_batch_norm, [*args, "--batchsize", "8", "--modelpath", "one"])) == [0]
    parts = ["--batchsize", "4", "--accumulate", "2", "--modelpath", "two"]
    assert codes(start(2, main_without_batch_norm, [*args, *parts])) == [0, 0]
    assert_close(Path("one"), Path("two"))


def whole_batch_parts(path: str) -> None:
    """Write what rank 0 and rank 1 see of a batch of four."""
    torch.distributed.init_process_group("gloo")
    rank, _ = global_batch.rank_and_world_size()
    torch.manual_seed(3)
    x = torch.randn(4, 3, 5, 6)
    own = x[2 * rank : 2 * rank + 2].clone().requires_grad_()
    seen = {"samples": global_batch.global_rand(5, 2, 3, batch_dim=1), "first": global_batch.global_rand(2, 3)}
    seen["state"] = torch.get_rng_state()
    seen["least"] = global_batch.all_reduce_min(own.amin(dim=(2, 3)))
    norm = global_batch.convert_global_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), torch.device("cpu"))
    y = norm(own)
    (y.pow(3).mean() * global_batch.all_reduce_mean(own.exp().mean())).backward()
    seen |= {"y": y.detach(), "gradient": own.grad, "norm": norm.state_dict()}
    torch.save(seen, f"{path}_{rank}")


def test_noise_means_minima_and_batch_norm_are_of_the_whole_batch(workplace):
    assert codes(start(2, whole_batch_parts, "seen")) == [0, 0]
    parts = [torch.load(f"seen_{rank}") for rank in range(2)]
    torch.manual_seed(3)
    x = torch.randn(4, 3, 5, 6).requires_grad_()
    assert torch.equal(torch.cat([part["samples"] for part in parts], 1), torch.rand(5, 4, 3))
    assert torch.equal(torch.cat([part["first"] for part in parts]), torch.rand(4, 3))
    assert torch.equal(parts[0]["state"], torch.get_rng_state())
    for part in parts:
        assert torch.equal(part["least"], torch.minimum(x[:2], x[2:]).amin(dim=(2, 3)))
    norm = nn.Sequential(nn.BatchNorm2d(3))
    y = norm(x)
    (y.pow(3).mean() * x.exp().mean()).backward()
    assert torch.allclose(torch.cat([part["y"] for part in parts]), y, atol=1e-5)
    # DistributedDataParallel divides by the number of processes what each has here.
    assert torch.allclose(torch.cat([part["gradient"] for part in parts]) / 2, x.grad, atol=1e-6)
    for part in parts:
        close(part["norm"], norm.state_dict(), "norm")


# --- stopping, dying, going on ---


def test_stopped_killed_and_gone_on_with(args, alone, together, workplace, assert_same):
    """A signal to one process, then the death of one; the two go on bit by bit as if nothing had been, or one alone."""
    run = Path("run")
    learners = len(NAMES)
    assert codes(
        start(2, smooth_main, [*args, "--modelpath", "run"], 1, 2, partial(signal.raise_signal, signal.SIGUSR1))
    ) == [138, 138]
    assert "stopped by SIGUSR1 at step 1\n" in Path("out_0").read_text()
    assert load_checkpoint(run / "last.pt")["step"] == 1

    more = ["--load", "--modelpath", "run"]
    killed = partial(signal.raise_signal, signal.SIGKILL)
    assert codes(start(2, smooth_main, more, 0, learners + 2, killed)) == [-9, 1]
    assert load_checkpoint(run / "last.pt")["step"] == 2
    (line,) = Path("err_1").read_text().splitlines()
    assert line.startswith("train.py: error: another process of this run was lost; to resume: ")
    assert "train.py --load --modelpath run" in line

    shutil.copytree("run", "single")
    assert codes(start(2, smooth_main, more)) == [0, 0]
    assert log_without_clocks(run) == log_without_clocks(together)
    assert_same(load_checkpoint(run / "last.pt"), load_checkpoint(together / "last.pt"))

    assert codes(start(1, smooth_main, ["--load", "--modelpath", "single"])) == [0]
    assert_close(alone, Path("single"))


def on_machines(argv: list[str], *arguments) -> None:
    """smooth_main of processes each on a machine of its own, with the images on its disk; none is kept in memory."""
    os.chdir(f"machine_{os.environ['RANK']}")
    PairedDataset.__init__.__kwdefaults__["cache_bytes"] = references.KEPT_BYTES = 0
    smooth_main(argv, *arguments)


def spoil(folder: str) -> None:
    for path in Path(folder).iterdir():
        path.write_bytes(b"")


def test_an_image_that_goes_bad_for_one_process(args, together, images, workplace, assert_same):
    """For the second in its first step, then for the first before a validation; put back, nothing of it remains."""
    run = workplace / "run"
    new, more = (
        [*args, "--trainpath", "mine", "--valpath", "others", "--modelpath", str(run)],
        ["--load", "--modelpath", str(run)],
    )

    def images_as_they_were():
        for folder in ("machine_0/mine", "machine_0/others", "machine_1/mine", "machine_1/others"):
            shutil.copytree(images, folder, dirs_exist_ok=True)

    for argv, rank, folder, step in ((new, 1, "mine", 1), (more, 0, "others", 2)):
        images_as_they_were()
        assert codes(start(2, on_machines, argv, rank, 1, partial(spoil, folder))) == [1, 1]
        (line,) = Path("err_0").read_text().splitlines()
        assert "train.py: error: cannot read image " in line and f"{folder}/" in line and line.endswith("put it back")
        assert Path("err_1").read_text() == ""
        assert f"to resume: python {ROOT / 'train.py'} --load --modelpath {run}" in Path("out_0").read_text()
        assert load_checkpoint(run / "last.pt")["step"] == step
    images_as_they_were()
    assert codes(start(2, on_machines, more)) == [0, 0]
    assert log_without_clocks(run) == log_without_clocks(together)
    assert_same(load_checkpoint(run / "last.pt")["learners"], load_checkpoint(together / "last.pt")["learners"])


def spoil_one(path: str) -> None:
    Path(path).write_bytes(b"")


def test_an_image_that_another_process_than_the_first_replaces_is_said(args, images, workplace):
    for rank in range(2):
        shutil.copytree(images, f"machine_{rank}/mine")
    argv = [
        *args,
        "--losses",
        "L1",
        "--bad-images",
        "skip",
        "--trainpath",
        "mine",
        "--modelpath",
        str(workplace / "run"),
    ]
    assert codes(start(2, on_machines, argv, 1, 1, partial(spoil_one, "mine/coffee.png"))) == [0, 0]
    said = [line for line in Path("out_0").read_text().splitlines() if "mine/coffee.png" in line]
    assert sum(line.startswith("left out from step ") for line in said) == 1
    assert sum(line.startswith("note: left out: ") for line in said) == 1
    assert sum("mine/coffee.png" in entry.get("left_out", "") for entry in log_of(workplace / "run")) == 1
    assert Path("err_0").read_text() == Path("err_1").read_text() == ""


@pytest.mark.parametrize(
    "wrong, said",
    [(["--batchsize", "3"], "--batchsize 3: expected a multiple of 2"), (["--model", "X"], "unknown model 'X'")],
)
def test_an_error_is_said_once(args, workplace, wrong, said):
    assert codes(start(2, train.main, [*args, *wrong])) == [2, 2]
    (line,) = Path("err_0").read_text().splitlines()
    assert line.startswith(f"train.py: error: {said}") and Path("err_1").read_text() == ""


def test_a_folder_in_use_is_said_once(args, workplace):
    with locked_run(workplace):
        assert codes(start(2, train.main, [*args, "--modelpath", str(workplace)])) == [2, 2]
    assert "in use by" in Path("err_0").read_text() and Path("err_1").read_text() == ""


def test_torchrun_hands_on_a_signal(args, workplace):
    """SIGTERM to torchrun itself, which hands it on to all its processes and waits for them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train.py"), *args]
    with open("said", "w") as said:
        torchrun = subprocess.Popen(
            [*command, "--losses", "L1", "--endepoch", "99", "--modelpath", "run"], stdout=said, stderr=said
        )
    wait_for_steps(Path("run"), 1)
    torchrun.terminate()
    assert torchrun.wait(300) != 0
    text = Path("said").read_text()
    step = load_checkpoint(Path("run/last.pt"))["step"]
    assert f"stopped by SIGTERM at step {step}\n" in text and "to resume: torchrun --nproc-per-node 2 " in text, text
    assert not Path("run/.lock").exists()
