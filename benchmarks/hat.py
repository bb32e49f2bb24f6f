"""HAT against spandrel's: same weights, same output and gradients, then the time and memory of forward and backward.

    python -m benchmarks.hat                       the published network with one of its six groups, 64x64, x4
    python -m benchmarks.hat --groups 6 --threads 2 --times 5

Seconds are the process's CPU time with one thread, so that other work on the machine counts little, else wall time.
Memory is the peak resident size of a process of its own beyond what it held before the first step.
"""

import argparse
import resource
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import psutil
import torch
from spandrel.architectures.HAT import HAT as SpandrelHAT
from tabulate import tabulate
from torch import nn

from models.hat import HAT
from models.released import from_published_hat

TOLERANCE = 1e-4  # largest relative difference, in the norm, of the output and of each gradient
# Which part of the network a module of either implementation belongs to; what is in none is "rest".
PARTS = {
    "WindowAttention": "window attention", "OCAB": "overlapping attention", "OverlappingAttentionBlock": "overlapping attention",
    "CAB": "conv blocks", "ConvBlock": "conv blocks", "Mlp": "MLPs", "MLP": "MLPs", "LayerNorm": "LayerNorms",
    "Upsample": "upsampling", "PixelShuffleUpsampler": "upsampling", "RHAG": "group's conv", "ResidualGroup": "group's conv",
    "HAB": "window cutting, sums", "HybridAttentionBlock": "window cutting, sums",
}  # fmt: skip


def build(name: str, groups: int) -> nn.Module:
    """spandrel's or our HAT x4 as published, with `groups` groups and the same weights under either name."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # spandrel calls meshgrid in the old way
        theirs = SpandrelHAT(
            upscale=4, embed_dim=180, depths=(6,) * groups, num_heads=(6,) * groups, window_size=16, compress_ratio=3,
            squeeze_factor=30, conv_scale=0.01, overlap_ratio=0.5, mlp_ratio=2.0, drop_path_rate=0.1,
        )  # fmt: skip
    if name == "spandrel":
        return theirs
    ours = HAT(4, depths=(6,) * groups, heads=(6,) * groups)
    ours.load_state_dict(from_published_hat({"params_ema": theirs.state_dict()}))
    return ours


def step(net: nn.Module, lr: torch.Tensor) -> torch.Tensor:
    """Forward and backward of the mean square of net(lr), lr (B,3,h,w); returns the output."""
    net.zero_grad()
    out = net(lr)
    out.square().mean().backward()
    return out.detach()


def difference(theirs: nn.Module, ours: nn.Module, lr: torch.Tensor) -> float:
    """The largest relative difference of the outputs and of any parameter's gradient, lr (B,3,h,w) in [0,1]."""
    theirs.eval(), ours.eval()  # stochastic depth draws in another way in each
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


def shares(net: nn.Module, lr: torch.Tensor, clock: Callable[[], float]) -> dict[str, float]:
    """The share of one step's time that each of PARTS takes by itself, what is inside it in another part left out."""
    spent, stack, handles = defaultdict(float), [], []
    last = clock()

    def turn(enter: str | None) -> None:
        nonlocal last
        now = clock()
        spent[stack[-1] if stack else "rest"] += now - last
        last = now
        stack.append(enter) if enter else stack.pop()

    for module in net.modules():
        part = PARTS.get(type(module).__name__)
        if part:
            enter, leave = (lambda *_, part=part: turn(part)), (lambda *_: turn(None))
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave),
                        module.register_full_backward_pre_hook(enter), module.register_full_backward_hook(leave)]
    step(net, lr.clone().requires_grad_())
    spent["rest"] += clock() - last
    for handle in handles:
        handle.remove()
    total = sum(spent.values())
    return {part: seconds / total for part, seconds in spent.items()}


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """MiB of resident memory that two steps of the network need, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.hat", "--only", name, "--groups", str(args.groups),
               "--size", str(args.size), "--batch", str(args.batch), "--threads", str(args.threads)]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_own_peak(name: str, groups: int, lr: torch.Tensor) -> None:
    """What the process that `peak_memory` starts does."""
    net = build(name, groups)
    before = psutil.Process().memory_info().rss
    for _ in range(2):
        step(net, lr)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.hat", description=__doc__.split("\n")[0])
    parser.add_argument("--groups", type=int, default=1, help="of the published six (default: 1)")
    parser.add_argument("--size", type=int, default=64, help="height and width of the input (default: 64)")
    parser.add_argument("--batch", type=int, default=1, help="(default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--times", type=int, default=5, help="timed steps of each network (default: 5)")
    parser.add_argument("--only", choices=("spandrel", "ours"), help="print the peak memory of one alone")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    lr = torch.rand(args.batch, 3, args.size, args.size)
    if args.only:
        return print_own_peak(args.only, args.groups, lr)

    nets = {name: build(name, args.groups) for name in ("spandrel", "ours")}
    off = difference(*nets.values(), lr)  # a warm-up too
    print(f"largest relative difference of output and gradients: {off:.1e}")
    if not off <= TOLERANCE:
        parser.error(f"the networks differ by {off:.1e}; expected at most {TOLERANCE:.0e}, run tests/models/test_models_hat.py")
    clock = time.process_time if args.threads == 1 else time.perf_counter
    seconds = {name: [] for name in nets}
    for _ in range(args.times):
        for name, net in nets.items():
            start = clock()
            step(net, lr)
            seconds[name].append(clock() - start)
    medians = {name: median(values) for name, values in seconds.items()}
    parts = {name: shares(net, lr, clock) for name, net in nets.items()}
    rows = [[name, f"{medians[name]:.2f}", f"{min(seconds[name]):.2f}", f"{medians['spandrel'] / medians[name]:.2f}",
             f"{peak_memory(name, args):.0f}"] for name in nets]  # fmt: skip
    kind = "CPU time" if args.threads == 1 else "wall time"
    print(f"forward + backward, {args.groups} of 6 groups, {args.batch}x3x{args.size}x{args.size}, x4, train mode, fp32, "
          f"{args.threads} thread(s), torch {torch.__version__}, {kind}, median of {args.times}")
    print(tabulate(rows, ["", "s", "least s", "times as fast", "peak MiB"], disable_numparse=True))
    print("\nshare of a step:")
    table = [[part, *(f"{100 * parts[name].get(part, 0):.0f} %" for name in nets)] for part in parts["ours"]]
    print(tabulate(table, ["", *nets], disable_numparse=True))


if __name__ == "__main__":
    main()
