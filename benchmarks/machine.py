"""Measure the machine's peak speed, and the time and memory of a computation."""

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
    """Describe the machine in a line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one call, including the device's work."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def peaks(device: torch.device, dtype: torch.dtype, times: int = 5) -> dict[str, float]:
    """Operations per second of a large convolution and a large matrix product, each at its fastest.

    The convolution is typical of SR networks, 3x3 with 64 to 64 channels, at a size at which it runs fastest.
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
    """The peak memory of work() in MiB; on the CPU, beyond what this process held before.

    On the CPU, it is Linux's record of the process's peak resident set, which is reset first.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 2**20

    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that malloc has kept is reused, and not counted
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmHWM")
    work()
    return resident("VmHWM") - before


def resident(kind: str) -> float:
    """The MiB of this process in memory, from Linux: "VmRSS" now, "VmHWM" at the peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 2**10


@contextmanager
def another_process() -> Iterator[Callable]:
    """Yield call(function, *args), which computes function(*args) in a process that does nothing else."""
    pool = multiprocessing.get_context("spawn").Pool(1)
    with pool:
        yield lambda function, *args: pool.apply(function, args)
        pool.close()
        pool.join()  # otherwise it is killed, and reports its libraries' resources as leaked


def in_its_own_process(function: Callable, *args):
    """Compute function(*args) in a process of its own."""
    with another_process() as call:
        return call(function, *args)


def turns(works: dict[str, Callable[[], object]], times: int, device: torch.device) -> dict[str, list[float]]:
    """Time `times` calls of each work, in turn, after two for warming up; return the seconds, sorted."""
    taken = {name: [] for name in works}
    for turn in range(times + 2):
        for name, work in works.items():
            took = seconds(work, device)
            if turn > 1:
                taken[name].append(took)
    return {name: sorted(values) for name, values in taken.items()}


def turns_apart(builders: dict[str, tuple], times: int, device: torch.device) -> dict[str, list[float]]:
    """Do as `turns`, with each work in its own process, which builds it by builder[0](*builder[1:])."""
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
