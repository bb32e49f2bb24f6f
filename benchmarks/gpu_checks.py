"""Checks of benchmarks.gpu, one command each: python -m benchmarks.gpu_checks CHECK --device cuda.

precision   networks, and losses with their gradients, against the CPU in fp32; bf16 against fp32
resume      with --deterministic, a resumed run and a loss trained alone give the same bits; the time this costs
hat         HAT with more windows than CUDA's kernels take at once, against fewer at a time
nccl        a step whose gradients a process group of one process averages, against a plain step
profile     kernels, their time and the gaps between them, in train.py's iteration (takes the flags of benchmarks.step)

Exit code 1 if a check fails.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from unittest import mock

import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import configs
import train
from configs import Config
from losses import LOSSES, global_batch
from metrics.extractors import FeatureDistance
from models import SR_MODELS
from models.ops import attention
from runs.checkpoint import load_checkpoint
from training import distributed
from training.device import fast_memory_format, place_frozen, setup_device
from training.learner import build_learners

from . import step
from .judges import untrained
from .machine import seconds, synchronize

ROOT = Path(__file__).parents[1]
SMALL = {"EDSR": {}, "VDSR": {}, "RCAN": {"groups": 2, "blocks": 4}, "RRDBNet": {"blocks": 4}, "HAT": {"depths": (2,)}}
BF16 = 0.05  # tolerance for losses and images: bf16 has 8 significant bits


def apart(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def of_network(name: str, device: torch.device, precision: str, size: int) -> dict[str, Tensor]:
    """Compute a network's image and the gradient of its weights, the same on all devices up to rounding."""
    torch.manual_seed(0)
    options = SMALL.get(name, {}) | ({"heads": (6,)} if name == "HAT" else {})
    net = SR_MODELS[name](scale=4, **options).eval()
    lr, weight = torch.rand(1, 3, size, size) * 2 - 1, torch.rand(1, 3, 4 * size, 4 * size)
    net = net.to(device, memory_format=fast_memory_format(device, precision))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        sr = net(lr.to(device))
    (sr.float() * weight.to(device)).mean().backward()
    return {"images": sr.detach(), "SR gradients": torch.cat([p.grad.flatten() for p in net.parameters()])}


def extractor_of(name: str) -> FeatureDistance:
    """Build the feature extractor with random weights."""
    extractor = FeatureDistance(name)
    for part in extractor.net.modules():
        for key, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if isinstance(part, nn.Conv2d) and key == "weight":
                nn.init.kaiming_normal_(value)
            else:  # biases, and FrozenBatchNorm2d's statistics
                nn.init.constant_(value, key in ("weight", "running_var"))
    return extractor


def of_loss(name: str, device: torch.device, precision: str, size: int) -> dict[str, Tensor]:
    """Compute the losses of two steps and the gradients that the optimizers follow.

    For UDL the second step is in its second stage.
    """
    torch.manual_seed(0)
    config = Config(
        model="EDSR",
        model_options={"blocks": 2, "channels": 16},
        losses=(name,),
        patch=size,
        batchsize=2,
        precision=precision,
        udl_epoch=1,
    )
    (learner,) = build_learners(config, device)
    learner.set_learning_rate(0)  # see benchmarks.step.deviations
    torch.manual_seed(0)
    judge = place_frozen(untrained("lpips-alex", check_range=False), device, precision)
    extractors = {x: place_frozen(extractor_of(x), device, precision) for x in learner.loss.extractors}
    gradients = step.followed(learner.opt)
    of_helper = step.followed(learner.helper_opt) if learner.helper_opt else []
    random, noise = torch.Generator().manual_seed(1), step.seeded_noise(2)
    lr, hr = (torch.rand(2, 3, side, side, generator=random) * 2 - 1 for side in (size // 4, size))
    values = []
    with mock.patch("torch.rand", lambda *shape, device=None: noise(torch.Size(shape)).to(device)):
        for epoch in range(2):
            learner.begin_epoch(epoch)
            learner.loss.begin_step(700 + epoch)  # PSPL's weights are no longer next to nothing
            taken = train.train_step([learner], judge, extractors, lr.to(device), hr.to(device), epoch, precision)
            values += [x for x in taken[learner.name] if x is not None]
    found = {"losses": torch.stack(values), "SR gradients": torch.cat(gradients)}
    return found | ({"weighting networks' gradients": torch.cat(of_helper)} if of_helper else {})


def precision(args: argparse.Namespace) -> tuple[dict, bool]:
    """Compare networks and losses on the device with the CPU's in fp32, and bf16 with fp32."""
    device, cpu = setup_device(args.device), torch.device("cpu")
    most = {"images": 1e-4, **step.TOLERANCES}
    numbers, size = {}, 16 if args.smoke else 48
    names = [(of_network, name, size) for name in SR_MODELS] + [(of_loss, name, 64) for name in LOSSES]
    for work, name, size in names[:: 6 if args.smoke else 1]:
        wanted, fp32, bf16 = (work(name, *on, size) for on in ((cpu, "fp32"), (device, "fp32"), (device, "bf16")))
        numbers[name] = {kind: apart(fp32[kind], wanted[kind]) for kind in wanted}
        numbers[name]["bf16"] = apart(*(next(iter(x.values())).float() for x in (bf16, fp32)))
    fine = all(far <= (most | {"bf16": BF16})[kind] for found in numbers.values() for kind, far in found.items())
    kinds = [*most, "bf16"]
    rows = [[name, *(found.get(kind) for kind in kinds)] for name, found in numbers.items()]
    print(tabulate(rows, ["|a - b| / |b|", *kinds], floatfmt=".1e"))
    print(f"at most: {most}, bf16 {BF16}")
    return numbers, fine


def train_py(folder: Path, *words: str) -> float:
    """Run train.py; return the seconds of training that it prints. Raises CalledProcessError."""
    command = [sys.executable, str(ROOT / "train.py"), "--modelpath", str(folder), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(re.search(r"trained in (\d+) s", done.stdout)[1])


def differing(one, other, where: str = "") -> list[str]:
    """The places in which two states differ in any bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{where}.{key}" for key in one.keys() ^ other.keys()]
        return missing or [x for key in one for x in differing(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)) and len(one) == len(other):
        return [x for i, (a, b) in enumerate(zip(one, other)) for x in differing(a, b, f"{where}[{i}]")]
    return [] if (torch.equal(one, other) if isinstance(one, Tensor) else one == other) else [where]


def resume(args: argparse.Namespace) -> tuple[dict, bool]:
    """Compare runs that must agree: whole, resumed half way, and with TLW alone; and time --deterministic."""
    steps = 4 if args.smoke else 400
    words = [*("--device", args.device, "--judge", "tiny", "--metrics", "tiny", "--log-every", "100")]
    words += [*("--patch", "64" if args.smoke else "96", "--batchsize", "2" if args.smoke else "16")]
    words += ["--model-options", "blocks=1", "channels=8"] if args.smoke else []
    losses, all_of = ("--losses", "L1+TLW", "L1", "MSE+TLW"), ("--steps", str(steps))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        taken = train_py(folder / "whole", *words, *losses, *all_of, "--deterministic")
        train_py(folder / "halves", *words, *losses, "--steps", str(steps // 2), "--deterministic")
        train_py(folder / "halves", "--load", *all_of)
        train_py(folder / "alone", *words, "--losses", "L1+TLW", *all_of, "--deterministic")
        fast = train_py(folder / "fast", *words, *losses, *all_of)
        whole, halves, alone, other = (
            load_checkpoint(folder / run / "last.pt")["learners"] for run in ("whole", "halves", "alone", "fast")
        )
    for learner in (*whole.values(), *halves.values()):
        del learner["best"]  # the run that ended half way was validated there too
    alone["L1+TLW"].pop("best")
    numbers = {
        "resumed": differing(whole, halves)[:5],
        "among others": differing(whole["L1+TLW"], alone["L1+TLW"])[:5],
        "without --deterministic": differing(whole, other)[:5],
        "seconds": {"--deterministic": taken, "without": fast},
    }
    rows = [[name, ", ".join(places) or "nothing"] for name, places in numbers.items() if name != "seconds"]
    print(tabulate(rows, [f"after {steps} steps", "differs"]))
    print(f"--deterministic: {taken} s, without {fast} s")
    return numbers, not numbers["resumed"] and not numbers["among others"]


def hat(args: argparse.Namespace) -> tuple[dict, bool]:
    """Compare HAT on more windows than a CUDA grid allows with the same in parts of fewer windows."""
    device, size, parts = setup_device(args.device), 64 if args.smoke else 1100, 100 if args.smoke else 1000
    torch.manual_seed(0)
    net = SR_MODELS["HAT"](scale=2, embed=24, depths=(2,), heads=(2,), window=4, squeeze_factor=2, channels=8)
    net, lr = net.to(device).eval(), torch.rand(1, 3, size, size, device=device) * 2 - 1
    with torch.no_grad():
        whole = net(lr)
        with mock.patch.object(attention, "_MAX_BATCH", parts):
            in_parts = net(lr)
    small = torch.rand(1, 3, 64, 64, device=device, requires_grad=True)
    net(small).mean().backward()
    numbers = {
        "windows": (size // 4) ** 2,
        "apart": apart(whole, in_parts),
        "gradient": bool(small.grad.isfinite().all()),
    }
    print(tabulate([numbers], headers="keys"))
    return numbers, numbers["apart"] < 1e-5 and numbers["gradient"]


def nccl(args: argparse.Namespace) -> tuple[dict, bool]:
    """Compare a step by DistributedDataParallel, in a group of one process, with a plain one."""
    device = setup_device(args.device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    wanted = of_loss("L1+TLW", device, "fp32", 64)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        stack.callback(dist.destroy_process_group)
        stack.enter_context(mock.patch.object(distributed, "get_world_size", lambda: 2))
        found = of_loss("L1+TLW", device, "fp32", 64)
        total = torch.ones(3, device=device)
        dist.all_reduce(total)
        mean = global_batch.all_reduce_mean(total)
    numbers = {"backend": backend, **{kind: apart(found[kind], wanted[kind]) for kind in wanted}}
    print(tabulate([numbers], headers="keys", floatfmt=".1e"))
    return numbers, bool((mean == 1).all()) and all(numbers[kind] <= step.TOLERANCES[kind] for kind in wanted)


def profile_step(args: argparse.Namespace) -> tuple[dict, bool]:
    """Profile an iteration: the kernels' time, and the share of time that the device is busy."""
    setup = step.Setup(step.parse(args.step))
    work, _, _ = setup.project(setup.args.precision)
    device, cuda = setup.device, setup.device.type == "cuda"
    times = [seconds(work, device) for _ in range(3 if args.smoke else 12)][2:]
    began = time.perf_counter()
    work()
    issued = time.perf_counter() - began
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as seen:
        work()
        synchronize(device)
    unit = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [x for x in seen.key_averages() if not cuda or x.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda x: -getattr(x, unit))
    busy, took = sum(getattr(x, unit) for x in events) / 1e6, median(times)
    numbers = {"seconds": took, "host seconds": issued, "kernels": sum(x.count for x in events), "busy": busy / took}
    rows = [[x.key[:90], x.count, getattr(x, unit) / 1e3, getattr(x, unit) / 1e6 / busy] for x in events[:25]]
    print(tabulate(rows, ["kernel", "times", "ms", "share"], floatfmt=("", "", ".2f", ".1%")))
    print(tabulate([numbers], headers="keys", floatfmt=".3f"))
    return numbers | {"top": rows}, True


CHECKS = {"precision": precision, "resume": resume, "hat": hat, "nccl": nccl, "profile": profile_step}


def main(argv: list[str] | None = None) -> None:
    parser = configs.OneLineParser(prog="benchmarks.gpu_checks", description=__doc__.split("\n")[0])
    parser.add_argument("check", choices=tuple(CHECKS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, only to show that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")
    args, step_words = parser.parse_known_args(argv)
    args.step = ["--device", args.device, *step_words]
    numbers, fine = CHECKS[args.check](args)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=1) + "\n")
    if not fine:
        raise SystemExit(f"benchmarks.gpu_checks: error: {args.check}: failed, see above")


if __name__ == "__main__":
    main()
