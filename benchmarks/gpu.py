"""Everything to check, measure and train on a GPU, in slices of at most nine minutes.

    python -m benchmarks.gpu --prepare --data datasets --weights alexnet.pth squeezenet.pth    copy the inputs
    python -m benchmarks.gpu                run the next steps for --minutes; the same command then continues
    python -m benchmarks.gpu --list         list the steps and their results
    python -m benchmarks.gpu --device cpu --smoke      try all steps with tiny sizes, without inputs

Three parts: correctness (the tests, devices against each other, resuming, HAT, --compile, nccl), speed (benchmarks.step
and profiles) and Table I (train.py in slices, with its evaluation, and export.py). Nothing is downloaded: --inputs has
T91, BSDS200, Set5 and the judges' backbone files, at most 64 MiB; speed is measured with random weights. --out gets
NAME.txt (all output) and NAME.json (the result) of each step, and the runs of Table I.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from tabulate import tabulate

import configs
from reproduce.papers import read_paper
from runs.atomic import atomic_write
from runs.evaluations import read_evaluations

from .machine import title

ROOT = Path(__file__).parents[1]
INPUTS, MOST_MIB = ("T91", "BSDS200", "Set5"), 64
LOSSES = ("L1+TLW", "MSE+TLW", "L1", "MSE")
STOPPED = 128 + signal.SIGTERM  # train.py's exit code if it was stopped, with all saved
SPARE = 45  # seconds of a slice reserved for stopping and saving


@dataclass(frozen=True)
class Step:
    """A step: commands to run one after another; "{json}" in them stands for a file for their numbers.

    headline: summarises the numbers in a few words. in_slices: the step may be stopped, and continues the next time.
    """

    name: str
    commands: list[list[str]]
    headline: Callable[[dict], str] = lambda numbers: ""
    in_slices: bool = False


def module(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", name, *words]


def command(name: str, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / name), *words]


# The steps, the most informative ones first.


def correct(args: argparse.Namespace) -> list[Step]:
    """Part 1: correctness."""
    on = ("--device", args.device, "--json", "{json}", *["--smoke"] * args.smoke)
    folders = ["tests/losses/test_pixel.py"] if args.smoke else ["tests/losses", "tests/models", "tests/metrics"]
    run = train_words(args, "EDSR", 4, args.out / "torchrun")
    torchrun = module("torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(ROOT / "train.py"))
    compiled = ("--compile", "--times", "3") if args.device != "cpu" else ("--times", "1", "--threads", "1")
    return [
        Step(
            "tests", [module("pytest", "--device", args.device, "-q", "-x" if args.smoke else "--tb=short", *folders)]
        ),
        *(
            Step(name, [module("benchmarks.gpu_checks", name, *on)], said)
            for name, said in (
                ("precision", lambda numbers: f"{len(numbers)} networks and losses"),
                (
                    "resume",
                    lambda numbers: "--deterministic {--deterministic} s, without {without} s".format(
                        **numbers["seconds"]
                    ),
                ),
                ("hat", lambda numbers: f"{numbers['windows']} windows"),
                ("nccl", lambda numbers: numbers["backend"]),
            )
        ),
        Step("torchrun", [[*torchrun, *run, "--auto-resume", "--steps", "4" if args.smoke else "50"]]),
        Step("compile", [speed_command(args, "EDSR", 192, 16, "alex", "bf16", *compiled)], of_speed),
    ]


def speed_command(args, model: str, size: int, batch: int, judge: str, precision: str, *more: str) -> list[str]:
    words = setup_words(args, model, size, batch, judge, precision)
    return module("benchmarks.step", *words, "--json", "{json}", *more)


def setup_words(args, model: str, size: int, batch: int, judge: str, precision: str) -> list[str]:
    """The flags of benchmarks.step that choose the iteration."""
    size, batch = (48, 1) if args.smoke else (size, batch)
    words = {"model": model, "size": size, "batchsize": batch, "judge": judge, "precision": precision}
    return [*(str(x) for name, value in words.items() for x in (f"--{name}", value)), "--device", args.device]


def of_speed(numbers: dict) -> str:
    peak = numbers["of a convolution's peak"]
    return f"{numbers['times as fast']:.2f} times as fast, {numbers['memory']:.2f} of the memory, {peak:.0%} of peak"


def fast(args: argparse.Namespace) -> list[Step]:
    """Part 2: speed."""
    steps = []
    shapes = [(192, 16), (224, 1)]
    which = list(product(("bf16", "fp32"), ("vgg", "alex"), ("EDSR", "RCAN"), shapes))
    for precision, judge, model, (size, batch) in [("bf16", "alex", "VDSR", (192, 16))] if args.smoke else which:
        name = f"{model}-{batch}x{size}-{judge}-{precision}"
        times = ("--times", "1", "--threads", "1") if args.smoke else ("--times", "11")
        steps.append(
            Step(f"speed-{name}", [speed_command(args, model, size, batch, judge, precision, *times)], of_speed)
        )
    for model, (size, batch) in [("VDSR", (192, 16))] if args.smoke else product(("EDSR", "RCAN"), shapes):
        words = setup_words(args, model, size, batch, "alex", "bf16")
        profiled = module("benchmarks.gpu_checks", "profile", *["--smoke"] * args.smoke, *words, "--json", "{json}")
        steps.append(
            Step(
                f"profile-{model}-{batch}x{size}",
                [profiled],
                lambda numbers: "{kernels} kernels, busy {busy:.0%} of {seconds:.3f} s".format(**numbers),
            )
        )
    return steps[len(shapes) * 2 - 4 :] if args.smoke else steps


def train_words(args: argparse.Namespace, model: str, scale: int, folder: Path) -> list[str]:
    """The flags of train.py for a cell of Table I, or with --smoke for something tiny."""
    words = [
        "--config",
        str(ROOT / "configs/table1.yaml"),
        "--model",
        model,
        "--scale",
        str(scale),
        "--losses",
        *LOSSES,
    ]
    words += ["--modelpath", str(folder), "--device", args.device]
    if args.smoke:
        words += ["--judge", "tiny", "--metrics", "tiny", "--patch", "48", "--batchsize", "2"]
        return [*words, "--model-options", "channels=8", "blocks=1"]
    folders = [
        "--trainpath",
        str(args.inputs / "T91"),
        str(args.inputs / "BSDS200"),
        "--valpath",
        str(args.inputs / "Set5"),
    ]
    weights = sorted(map(str, args.inputs.glob("*.pth")))
    metrics = ["alex", *["squeeze"] * any("squeeze" in path for path in weights)]
    judge = ["--judge", "lpips-alex", "--metrics", *metrics, "--judge-weights", *weights]
    return [*words, *folders, *judge, "--precision", args.precision, "--workers", "4"]


def table1(args: argparse.Namespace) -> list[Step]:
    """Part 3: Table I; each cell's four losses are one run."""
    steps, cells = [], [("VDSR", 4)] if args.smoke else product(args.models, args.scales)
    for model, scale in cells:
        folder = args.out / f"{model}_x{scale}"
        epochs = ("--steps", "6") if args.smoke else ("--endepoch", str(args.epochs))
        exports = [
            command("export.py", "--modelpath", str(folder), "--best", "--loss", loss, "--to", "safetensors", "--fp16")
            + ["--overwrite"]
            for loss in LOSSES
        ]
        train = command("train.py", *train_words(args, model, scale, folder), *epochs, "--auto-resume")
        steps.append(
            Step(
                f"table1-{model}_x{scale}",
                [train, *exports],
                lambda numbers, model=model, scale=scale, folder=folder: of_cell(folder, model, scale),
                in_slices=True,
            )
        )
    return steps


def of_cell(folder: Path, model: str, scale: int) -> str:
    """PSNR-Y of each loss on the validation images, with the paper's."""
    paper, said = read_paper("table1"), []
    for entry in read_evaluations(folder / "val.json"):
        for row in entry["rows"]:
            theirs = paper.number(model, scale, row["loss"], entry["dataset"], "PSNR-Y", entry["protocol"])
            beside = f" (paper {theirs:.2f})" if theirs else ""
            said.append(f"{row['loss']} {row['PSNR-Y']:.2f}{beside}")
    return f"PSNR-Y {', '.join(said)}"


def steps_of(args: argparse.Namespace) -> list[Step]:
    return [*correct(args), *fast(args), *table1(args)]


# Running them.


def read(args: argparse.Namespace, step: Step) -> dict:
    """The step's result so far; its state is "done", "failed", "stopped" or, at first, "to do"."""
    path = args.out / f"{step.name}.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "to do", "seconds": 0, "headline": ""}


def run_one(words: list[str], log, limit: float) -> int:
    """Run a command; return its exit code, or STOPPED if it had to be ended after `limit` seconds."""
    log.write(f"\n$ {' '.join(words)}\n")
    log.flush()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        words, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env, start_new_session=True
    ) as child:
        for number, wait in ((None, limit), (signal.SIGTERM, SPARE), (signal.SIGKILL, None)):
            if number:
                os.killpg(child.pid, number)
            try:
                code = child.wait(wait)
            except subprocess.TimeoutExpired:
                continue
            return STOPPED if number else code
    return STOPPED


def run(args: argparse.Namespace, step: Step, seconds: float, whole: bool) -> dict:
    """Run the step for at most `seconds`; write and return its result.

    whole: the seconds are a whole slice, so that a step that cannot be continued has failed if it is cut off.
    """
    began, code, numbers = time.monotonic(), 0, {}
    scratch = args.out / f".{step.name}.numbers"
    with open(args.out / f"{step.name}.txt", "a" if step.in_slices else "w") as log:
        for words in step.commands:
            left = seconds - SPARE - (time.monotonic() - began)
            code = run_one([word.replace("{json}", str(scratch)) for word in words], log, max(left, 1))
            if scratch.exists():
                numbers |= json.loads(scratch.read_text())
                scratch.unlink()
            if code:
                break
    stopped = code == STOPPED and (step.in_slices or not whole)
    taken = time.monotonic() - began + (read(args, step)["seconds"] if step.in_slices else 0)
    result = {
        "state": "done" if not code else "stopped" if stopped else "failed",
        "seconds": round(taken, 1),
        "headline": step.headline(numbers) if not code else f"exit code {code}, see {step.name}.txt" * (not stopped),
        "machine": title(torch.device(args.device)),
        "commands": step.commands,
        "numbers": numbers,
    }
    atomic_write(args.out / f"{step.name}.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def print_table(args: argparse.Namespace) -> None:
    rows = [
        [step.name, *(read(args, step)[key] for key in ("state", "seconds", "headline"))] for step in steps_of(args)
    ]
    print(tabulate(rows, ["step", "state", "seconds", ""], disable_numparse=True))


def prepare(args: argparse.Namespace) -> None:
    """Copy what the steps read into --inputs. Raises ValueError if something is missing or too large."""
    sources = [args.data / name for name in INPUTS] + args.weights
    for source in sources:
        configs.expect(source.exists(), "data", source, f"a folder with {' '.join(INPUTS)}, and --weights FILE ...")
        target = args.inputs / source.name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    size = sum(path.stat().st_size for path in args.inputs.rglob("*") if path.is_file()) / 2**20
    print(f"{args.inputs}: {size:.1f} MiB")
    configs.expect(size <= MOST_MIB, "inputs", args.inputs, f"at most {MOST_MIB} MiB in it, not {size:.1f}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = configs.OneLineParser(prog="benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="list the steps and their results")
    parser.add_argument("--step", nargs="+", metavar="NAME", help="run these steps, even if they are done")
    parser.add_argument("--minutes", type=float, default=9, help="time to run for (default: 9)")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/gpu"), help="(default: checkpoints/gpu)")
    parser.add_argument("--inputs", type=Path, default=Path("checkpoints/inputs"), help="(default: checkpoints/inputs)")
    parser.add_argument("--prepare", action="store_true", help="copy into --inputs from --data and --weights")
    parser.add_argument("--data", type=Path, default=Path("datasets"), help=f"folder with {' '.join(INPUTS)}")
    parser.add_argument("--weights", nargs="+", type=Path, default=[], metavar="FILE", help="backbone files of judges")
    parser.add_argument("--models", nargs="+", default=["VDSR", "EDSR"], choices=("VDSR", "EDSR", "RCAN"))
    parser.add_argument("--scales", nargs="+", type=int, default=[4, 2], choices=(2, 3, 4))
    parser.add_argument("--epochs", type=int, default=100, help="for Table I (default: 100, the paper's)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="for Table I (default: bf16)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, only to show that all steps run")
    args = parser.parse_args(argv)
    args.out, args.inputs = args.out.absolute(), args.inputs.absolute()
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("benchmarks.gpu"):
        if args.prepare:
            return prepare(args)
        steps = {step.name: step for step in steps_of(args)}
        for name in args.step or ():
            configs.expect(name in steps, "step", name, f"one of {' '.join(steps)}")
        if args.list:
            return print_table(args)
        configs.expect(args.smoke or args.inputs.is_dir(), "inputs", args.inputs, "what --prepare made")
    args.out.mkdir(parents=True, exist_ok=True)
    left = args.step or [name for name, step in steps.items() if read(args, step)["state"] in ("to do", "stopped")]
    end, whole = time.monotonic() + 60 * args.minutes, True
    for name in left:
        seconds = end - time.monotonic()
        if seconds < 2 * SPARE:
            break
        print(f"{name} ...", flush=True)
        result = run(args, steps[name], seconds, whole)
        print(f"{name}: {result['state']} after {result['seconds']:.0f} s. {result['headline']}", flush=True)
        whole = False
    print_table(args)
    failed = [name for name, step in steps.items() if read(args, step)["state"] == "failed"]
    if failed:
        raise SystemExit(f"benchmarks.gpu: error: failed: {' '.join(failed)}")


if __name__ == "__main__":
    main()
