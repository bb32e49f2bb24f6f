"""What the machine can do, and what a computation takes of it."""

import ctypes
import functools
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn


def title(device: torch.device) -> str:
    """The machine in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def peaks(device: torch.device, dtype: torch.dtype, times: int = 5) -> dict[str, float]:
    """Floating-point operations per second of a large convolution and of a matrix product, the best of `times`.

    The convolution is one that SR networks are made of, 64 to 64 channels, 3x3, where it runs fastest.
    """
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    images = torch.randn(64 if device.type == "cuda" else 4, 64, 192, 192, device=device, dtype=dtype)
    images = images.to(memory_format=torch.channels_last)
    conv = nn.Conv2d(64, 64, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    works = {
        "convolution": (lambda: conv(images), 2 * images.numel() * 64 * 9),
        "matrix product": (lambda: a @ b, 2 * size**3),
    }
    with torch.inference_mode():
        return {
            name: operations / min(seconds(work, device) for _ in range(times + 1))
            for name, (work, operations) in works.items()
        }


def peak_memory(work: Callable[[], object], device: torch.device) -> float:
    """The most memory in MiB that was taken at a time for work(), on the CPU beyond what this process held before it.

    On the CPU by Linux's record of the process's highest resident set, which is set back first.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 2**20

    ctypes.CDLL(None).malloc_trim(0)  # else what the heap has kept of before would count for nothing
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmHWM")
    work()
    return resident("VmHWM") - before


def resident(kind: str) -> float:
    """MiB of this process that are in memory, by Linux's record: "VmRSS" now, "VmHWM" at most so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 2**10


@contextmanager
def another_process() -> Iterator[Callable]:
    """Within, call(function, *args) computes function(*args) in a process that does nothing else."""
    pool = multiprocessing.get_context("spawn").Pool(1)
    with pool:
        yield lambda function, *args: pool.apply(function, args)
        pool.close()
        pool.join()  # else it is killed, and what its libraries hold is reported as leaked


def in_its_own_process(function: Callable, *args):
    """function(*args), computed in a process of its own."""
    with another_process() as call:
        return call(function, *args)


def turns(works: dict[str, Callable[[], object]], times: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of `times` calls of each, in turn, after two that do not count; sorted."""
    taken = {name: [] for name in works}
    for turn in range(times + 2):
        for name, work in works.items():
            took = seconds(work, device)
            if turn > 1:
                taken[name].append(took)
    return {name: sorted(values) for name, values in taken.items()}


def turns_apart(builders: dict[str, tuple], times: int, device: torch.device) -> dict[str, list[float]]:
    """As turns, each work in a process of its own, which builds it: the first of a tuple, called with the others."""
    with ExitStack() as stack:
        works = {}
        for name, builder in builders.items():
            call = stack.enter_context(another_process())
            call(_begin, *builder)
            works[name] = functools.partial(call, _call, device)
        return turns(works, times, device)


_work: Callable[[], object]


def _begin(build: Callable, *args) -> None:
    global _work
    _work = build(*args)


def _call(device: torch.device) -> None:
    _work()
    synchronize(device)
