"""Time the Table I iteration (L1+TLW, MSE+TLW, L1, MSE): the released code's against train.py's.

    python -m benchmarks.step                                    EDSR x4, 224x224, batch 1, judge vgg
    python -m benchmarks.step --model RCAN --size 192 --batchsize 16 --judge alex --precision bf16 --device cuda

First it checks that both give the same losses and gradients in fp32. Then they run in turn, each in its own process (in
train.py's, malloc keeps freed memory), on one batch of random numbers; the judges have random weights, which cost the
same as trained ones. Peak memory is measured in further processes. Operations are those of convolutions and matrix
products; a multiply-add counts as two.
"""

import argparse
import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest import mock

import lpips
import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

import configs
import train
from configs import Config
from metrics.judges import MEMORY
from training.device import fast_memory_format, place_frozen, setup_device
from training.learner import build_learners

from .judges import BACKBONES, untrained
from .machine import in_its_own_process, peak_memory, peaks, title, turns_apart
from .parts import seconds_by_part
from .plain import LOSSES, Plain

# In both, rounding to fp32 alone changes the weighting networks' gradients by half a percent against float64.
TOLERANCES = {"losses": 1e-4, "SR gradients": 1e-4, "weighting networks' gradients": 2e-2}


class Setup:
    """Both iterations, with the same initial weights and the same batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        torch.manual_seed(0)
        memory = (args.judge_memory or MEMORY[self.device.type]) << 20
        self.judge = untrained(f"lpips-{args.judge}", memory=memory)
        self.hr = (torch.rand(args.batchsize, 3, args.size, args.size) * 2 - 1).to(self.device)
        self.lr = torch.nn.functional.interpolate(self.hr, scale_factor=1 / args.scale, mode="area")
        self.config = Config(
            model=args.model,
            scale=args.scale,
            losses=LOSSES,
            samples=args.samples,
            precision=args.precision,
            compile=args.compile,
        )

    def project(self, precision: str):
        """Build train.py's iteration, which returns the losses by name; return it, its learners and judge."""
        setup_device(self.args.device)  # malloc keeps freed memory, as in train.py
        learners = build_learners(self.config, self.device)
        judge = place_frozen(copy.deepcopy(self.judge), self.device, precision)
        layout = fast_memory_format(self.device, precision)
        lr, hr = (x.contiguous(memory_format=layout) for x in (self.lr, self.hr))
        return lambda: train.train_step(learners, judge, {}, lr, hr, 0.0, precision), learners, judge

    def plain(self, learning_rate: float = 1e-4, noise=torch.rand):
        """Build the released code's iteration likewise; return it and its Plain."""
        learner, *_ = build_learners(replace(self.config, compile=False), self.device)
        with warnings.catch_warnings():  # lpips calls torchvision with a deprecated keyword
            warnings.simplefilter("ignore", UserWarning)
            judge = lpips.LPIPS(net=self.args.judge, pnet_rand=True, verbose=False).eval().requires_grad_(False)
        judge.net.load_state_dict(self.judge.backbone.net.state_dict())
        parts = (m.to(memory_format=torch.contiguous_format) for m in (learner.net, learner.loss.helper))
        plain = Plain(*parts, judge.to(self.device), self.args.samples, learning_rate, noise)
        return lambda: plain.step(self.lr, self.hr, 0.0), plain


def seeded_noise(seed: int):
    """Return noise(shape), uniform numbers that do not depend on how many samples a call asks for."""
    stream = torch.Generator().manual_seed(seed)

    def noise(shape: torch.Size) -> torch.Tensor:
        samples = [torch.empty(shape[-4:]).uniform_(generator=stream) for _ in range(shape[:-4].numel())]
        return torch.stack(samples).reshape(shape)

    return noise


def deviations(setup: Setup) -> dict[str, float]:
    """Compare the two in fp32 with the same noise: |a - b| / |b| of losses and of networks' gradients.

    The learning rate is 0: Adam's first step has the same size for every gradient, so that fp32's rounding of the
    smallest gradients in the E-step would change those of the M-step.
    """
    noise = seeded_noise(1)
    with mock.patch("torch.rand", lambda *shape, device=None: noise(torch.Size(shape)).to(device)):
        step, learners, _ = setup.project("fp32")
        for learner in learners:
            learner.set_learning_rate(0)
        ours = {x.name: (followed(x.opt), followed(x.helper_opt) if x.helper_opt else []) for x in learners}
        found = step()
    step, plain = setup.plain(learning_rate=0, noise=seeded_noise(1))
    helper_opts = plain.helper_opts
    theirs = {
        name: (followed(opt), followed(helper_opts[name]) if name in helper_opts else [])
        for name, opt in plain.opts.items()
    }
    wanted = step()

    pairs = {name: [] for name in TOLERANCES}
    for name in LOSSES:
        pairs["losses"] += [(a, b) for a, b in zip(found[name], wanted[name]) if a is not None]
        for kind, a, b in zip(("SR gradients", "weighting networks' gradients"), ours[name], theirs[name]):
            pairs[kind] += zip(a, b, strict=True)
    return {name: max(float((a - b).norm() / b.norm()) for a, b in both) for name, both in pairs.items()}


def followed(opt: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return a list to which every step of opt appends its gradient."""
    gradients = []
    opt.register_step_pre_hook(
        lambda *_: gradients.append(
            torch.cat([p.grad.flatten() for p in opt.param_groups[0]["params"] if p.grad is not None])
        )
    )
    return gradients


def iteration(which: str, args: argparse.Namespace):
    """Build the "released" or the "project" iteration, in a process that runs nothing else."""
    torch.set_num_threads(args.threads)
    setup = Setup(args)
    return setup.plain()[0] if which == "released" else setup.project(args.precision)[0]


def memory_of(which: str, args: argparse.Namespace) -> float:
    """Peak MiB of two iterations."""
    step = iteration(which, args)
    return peak_memory(lambda: [step() for _ in range(2)], torch.device(args.device))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = configs.OneLineParser(prog="benchmarks.step", description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=("EDSR", "RCAN", "VDSR"), default="EDSR")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--size", type=int, default=224, help="side of the square HR images (default: 224)")
    parser.add_argument("--batchsize", type=int, default=1)
    parser.add_argument("--judge", choices=tuple(BACKBONES), default="vgg")
    parser.add_argument("--samples", type=int, default=3, help="T (default: 3)")
    parser.add_argument("--judge-memory", type=int, help="MiB, as in train.py")
    parser.add_argument("--compile", action="store_true", help="use torch.compile on the project's networks")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--times", type=int, default=5, help="timed iterations of each (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    setup = Setup(args)
    print(
        f"{args.model} x{args.scale}, {args.batchsize} x {args.size}x{args.size}, judge {args.judge}, "
        f"T = {args.samples}, {args.precision}; {title(setup.device)}"
    )
    apart = deviations(setup)
    print("apart in fp32: " + ", ".join(f"{name} {value:.0e}" for name, value in apart.items()))
    if not all(apart[name] < most for name, most in TOLERANCES.items()):
        raise SystemExit(f"benchmarks.step: error: the two differ; expected at most {TOLERANCES}")

    step, learners, judge = setup.project(args.precision)
    steps, operations = {"released": setup.plain()[0], "project": step}, {}
    for name in steps:
        with FlopCounterMode(display=False) as counter:
            steps[name]()
        operations[name] = counter.get_total_flops()
    taken = turns_apart({name: (iteration, name, args) for name in steps}, args.times, setup.device)
    memory = {name: in_its_own_process(memory_of, name, args) for name in steps}
    rows = [
        [
            name,
            median(taken[name]),
            taken[name][0],
            taken[name][-1],
            args.batchsize / median(taken[name]),
            operations[name] / 1e9,
            operations[name] / median(taken[name]) / 1e9,
            memory[name],
        ]
        for name in steps
    ]
    print(
        tabulate(
            rows,
            ["iteration", "median s", "least", "most", "images/s", "GFLOP", "GFLOP/s", "peak MiB"],
            floatfmt=("", ".3f", ".3f", ".3f", ".2f", ".0f", ".0f", ".0f"),
        )
    )
    ratio, share = median(taken["released"]) / median(taken["project"]), memory["project"] / memory["released"]
    print(
        f"ratio: {ratio:.2f} in time, {operations['released'] / operations['project']:.2f} in operations, "
        f"{share:.2f} of the memory"
    )
    speed = operations["project"] / median(taken["project"])
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    highest = peaks(setup.device, dtype)
    for name, peak in highest.items():
        print(
            f"peak of a {name}, {str(dtype).removeprefix('torch.')}: {peak / 1e9:.0f} GFLOP/s; the project's "
            f"iteration reaches {speed / peak:.0%} of it"
        )
    parts = seconds_by_part(step, learners, judge, setup.device)
    total = sum(parts.values())
    print(
        tabulate(
            [[name, s, f"{s / total:.0%}"] for name, s in parts.items()],
            ["where it goes", "seconds", "share"],
            floatfmt=".3f",
        )
    )
    if args.json:
        numbers = {"machine": title(setup.device), "apart": apart, "times as fast": ratio, "memory": share}
        numbers |= {"of a convolution's peak": speed / highest["convolution"], "peaks": highest, "parts": parts}
        numbers |= {"seconds": taken, "MiB": memory, "operations": operations}
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
