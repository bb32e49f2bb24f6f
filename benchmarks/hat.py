"""Compare our HAT with spandrel's: output and gradients, then time and memory of a step.

    python -m benchmarks.hat                       the published network with one of its six groups, 64x64, x4
    python -m benchmarks.hat --groups 6 --threads 2 --times 5

Both have the same weights and run in turn, each in its own process; ours as in train.py, with the fastest memory format
and a malloc that keeps freed memory. Memory is the peak resident size, in further processes, beyond the size before the
first step.
"""

import argparse
import functools
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch
from spandrel.architectures.HAT import HAT as SpandrelHAT
from tabulate import tabulate
from torch import nn

import configs
from models.hat import HAT
from models.released import from_published_hat
from training.device import fast_memory_format, setup_device

from .machine import in_its_own_process, peak_memory, title, turns_apart

TOLERANCE = 1e-4  # largest relative difference, in the norm, of the output and of each gradient
# The part of the network that a module of either implementation belongs to; all others are "rest".
PARTS = {
    "WindowAttention": "window attention",
    "CAB": "conv blocks",
    "ConvBlock": "conv blocks",
    "Mlp": "MLPs",
    "MLP": "MLPs",
    "OCAB": "overlapping attention",
    "OverlappingAttentionBlock": "overlapping attention",
    "LayerNorm": "LayerNorms",
    "Upsample": "upsampling",
    "PixelShuffleUpsampler": "upsampling",
    "RHAG": "groups' convs",
    "ResidualGroup": "groups' convs",
    "HAB": "window cutting, sums",
    "HybridAttentionBlock": "window cutting, sums",
}


def build(name: str, groups: int) -> nn.Module:
    """Build "spandrel"'s or our HAT x4 as published, with `groups` groups; both get the same weights."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about spandrel's call of meshgrid
        theirs = SpandrelHAT(
            upscale=4,
            embed_dim=180,
            depths=(6,) * groups,
            num_heads=(6,) * groups,
            window_size=16,
            compress_ratio=3,
            squeeze_factor=30,
            conv_scale=0.01,
            overlap_ratio=0.5,
            mlp_ratio=2.0,
            drop_path_rate=0.1,
        )
    if name == "spandrel":
        return theirs
    ours = HAT(4, depths=(6,) * groups, heads=(6,) * groups)
    ours.load_state_dict(from_published_hat({"params_ema": theirs.state_dict()}))
    return ours


def step(net: nn.Module, lr: torch.Tensor) -> torch.Tensor:
    """Forward and backward of the mean square of net(lr), lr (B,3,h,w); return the output."""
    net.zero_grad()
    out = net(lr)
    out.square().mean().backward()
    return out.detach()


def difference(theirs: nn.Module, ours: nn.Module, lr: torch.Tensor) -> float:
    """The largest relative difference of outputs and parameters' gradients, lr (B,3,h,w) in [0,1]."""
    theirs.eval(), ours.eval()  # in training, stochastic depth draws differently in each
    theirs.zero_grad(), ours.zero_grad()
    expected, got = 2 * theirs(lr) - 1, ours(2 * lr - 1)
    (expected.square().mean() + got.square().mean()).backward()
    found = [(got - expected).norm() / expected.norm()]
    for name, parameter in theirs.named_parameters():
        # from_published_hat rescales these two for inputs in [-1,1].
        factor = 2 if name == "conv_first.weight" else 0.5 if name.startswith("conv_last") else 1
        wanted = factor * parameter.grad
        found.append((ours.get_parameter(name).grad - wanted).norm() / wanted.norm())
    theirs.train(), ours.train()
    return max(x.item() for x in found)


def shares(net: nn.Module, lr: torch.Tensor) -> dict[str, float]:
    """The share of a step's time in each of PARTS, without the parts nested in it."""
    spent, stack, handles = defaultdict(float), [], []
    last = time.perf_counter()

    def turn(enter: str | None) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[stack[-1] if stack else "rest"] += now - last
        last = now
        stack.append(enter) if enter else stack.pop()

    for module in net.modules():
        part = PARTS.get(type(module).__name__)
        if part:
            enter, leave = (lambda *_, part=part: turn(part)), (lambda *_: turn(None))
            handles += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
                module.register_full_backward_pre_hook(enter),
                module.register_full_backward_hook(leave),
            ]
    step(net, lr.clone().requires_grad_())
    spent["rest"] += time.perf_counter() - last
    for handle in handles:
        handle.remove()
    total = sum(spent.values())
    return {part: seconds / total for part, seconds in spent.items()}


def prepared(name: str, groups: int, shape: tuple[int, ...], threads: int) -> tuple[nn.Module, torch.Tensor]:
    """Build a network and its input, in a process that runs nothing else."""
    torch.set_num_threads(threads)
    net, lr = build(name, groups), torch.rand(shape)
    if name == "ours":  # as train.py has it
        net = net.to(memory_format=fast_memory_format(setup_device("cpu"), "fp32"))
    return net, lr


def timed_step(*args) -> Callable[[], torch.Tensor]:
    return functools.partial(step, *prepared(*args))


def memory_of(*args) -> float:
    """Peak MiB of two steps."""
    work = timed_step(*args)
    return peak_memory(lambda: [work() for _ in range(2)], torch.device("cpu"))


def shares_of(*args) -> dict[str, float]:
    """`shares` of a second step; the first one warms up."""
    net, lr = prepared(*args)
    return [shares(net, lr) for _ in range(2)][1]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = configs.OneLineParser(prog="benchmarks.hat", description="HAT against spandrel's: results, time, memory.")
    parser.add_argument("--groups", type=int, default=1, help="number of the published six groups (default: 1)")
    parser.add_argument("--size", type=int, default=64, help="height and width of the input (default: 64)")
    parser.add_argument("--batch", type=int, default=1, help="(default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--times", type=int, default=5, help="timed steps of each network (default: 5)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    lr = torch.rand(args.batch, 3, args.size, args.size)
    nets = {name: build(name, args.groups) for name in ("spandrel", "ours")}
    off = difference(*nets.values(), lr)  # a warm-up too
    print(f"largest relative difference of output and gradients: {off:.1e}")
    if not off <= TOLERANCE:
        print(f"benchmarks.hat: error: networks apart by {off:.1e}; expected at most {TOLERANCE:.0e}, see HAT's tests")
        raise SystemExit(2)
    works = {name: (name, args.groups, lr.shape, args.threads) for name in nets}
    seconds = turns_apart({name: (timed_step, *work) for name, work in works.items()}, args.times, lr.device)
    parts = {name: in_its_own_process(shares_of, *work) for name, work in works.items()}
    memory = {name: in_its_own_process(memory_of, *work) for name, work in works.items()}
    rows = [[name, median(seconds[name]), min(seconds[name]), memory[name]] for name in nets]
    shape = "x".join(map(str, lr.shape))
    print(
        f"forward + backward, {args.groups} of 6 groups, input {shape}, x4, train mode, fp32; {title(lr.device)}, "
        f"{args.times} steps of each in turn"
    )
    print(tabulate(rows, ["", "median s", "least", "peak MiB"], floatfmt=("", ".2f", ".2f", ".0f")))
    print(
        f"spandrel's / ours: {rows[0][1] / rows[1][1]:.2f} by the medians, {rows[0][2] / rows[1][2]:.2f} by the least"
    )
    print("\nshare of a step:")
    table = [[part, *(f"{100 * parts[name].get(part, 0):.0f} %" for name in nets)] for part in parts["ours"]]
    print(tabulate(table, ["", *nets], disable_numparse=True))


if __name__ == "__main__":
    main()
