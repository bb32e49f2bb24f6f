"""Training by several processes that torchrun starts.

Each process computes its share of every batch; the main process writes. Without torchrun nothing here has an effect.
Two process groups connect the processes. The default one (nccl between GPUs, gloo between CPUs) is for the collectives
of a step, with STEP_TIMEOUT. The other one (gloo) is for those between steps, when a process may write or validate for
long, with SYNC_TIMEOUT. Both notice the death of a process at once, and that of a machine after the timeout.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, Subset

from losses import global_batch

STEP_TIMEOUT, SYNC_TIMEOUT = timedelta(seconds=60), timedelta(minutes=30)


def get_world_size() -> int:
    """The number of processes that train together; 1 without torchrun."""
    return global_batch.rank_and_world_size()[1]


def get_rank() -> int:
    """The rank of this process, from 0."""
    return global_batch.rank_and_world_size()[0]


def is_main_process() -> bool:
    """True for the process that writes and prints."""
    return get_rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that torchrun started; only the main process prints to stdout."""
    global _between_steps
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=STEP_TIMEOUT)
    _between_steps = dist.new_group(backend="gloo", timeout=SYNC_TIMEOUT)
    with (
        open(os.devnull, "w", errors="replace") as nowhere,
        nullcontext() if is_main_process() else redirect_stdout(nowhere),
    ):
        yield
    dist.destroy_process_group()  # not after an exception: it can hang if a process is lost


def local_device(device: torch.device) -> torch.device:
    """The device of this process in a run on `device`: the GPU of its local rank, or the CPU.

    Raises ValueError if there are fewer GPUs than processes, or if `device` names one GPU for all.
    """
    if get_world_size() == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise ValueError(f"--device {device}: one GPU for {get_world_size()} processes; use --device cuda")
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise ValueError(f"--nproc-per-node: more processes than GPUs; expected at most {count}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


# --- collectives between steps ---


def all_gather(value) -> list:
    """Gather the value of every process, in the order of ranks."""
    if get_world_size() == 1:
        return [value]
    values = [None] * get_world_size()
    dist.all_gather_object(values, value, group=_between_steps)
    return values


def all_reduce_max(*values: int) -> list[int]:
    """The maximum of each value over the processes."""
    if get_world_size() == 1:
        return [*values]
    numbers = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_between_steps)
    return numbers.tolist()


def barrier() -> None:
    """Wait until all processes get here."""
    if get_world_size() > 1:
        dist.barrier(group=_between_steps)


@contextmanager
def raise_on_any_rank() -> Iterator[None]:
    """Re-raise on every rank an error from any rank; the lowest failing rank prints it.

    The ranks compare their errors at the end of the block, which all of them must reach.
    """
    if get_world_size() == 1:
        yield
        return
    error, said = None, io.StringIO()
    try:
        with nullcontext() if is_main_process() else redirect_stderr(said):
            yield
    except (Exception, SystemExit) as caught:  # the other ranks must learn of it
        error = caught
    try:
        codes = all_gather(exit_code(error))
    except RuntimeError as disconnected:
        raise disconnected if error is None else error from None
    wrong = [number for number, code in enumerate(codes) if code is not None]
    if wrong and get_rank() == wrong[0]:
        sys.stderr.write(said.getvalue())
        raise error
    if wrong:
        raise SystemExit(codes[wrong[0]])


def exit_code(error: BaseException | None) -> int | None:
    """The exit code for an error; None for no error."""
    if isinstance(error, SystemExit):
        return error.code
    return None if error is None else 2 if isinstance(error, ValueError) else 1


def is_peer_failure(error: BaseException) -> bool:
    """True if the error means that another process no longer answers."""
    return isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def launch_command() -> str:
    """The program that train.py was started with: python or torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return "python"
    return f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"


# --- data parallel ---


class GradientAveraged:
    """compute(*args), whose backward averages the gradients of learning(*args) over the processes.

    Uses DistributedDataParallel, built again whenever the parameters change; a single process just calls compute.

    Args:
        compute: returns the tensors that backward starts from.
        learning: takes compute's arguments and returns all parameters that this backward reaches.
    """

    def __init__(self, compute: Callable, learning: Callable[..., list[nn.Parameter]]):
        self.compute, self.learning = compute, learning
        self.parallel, self.of = None, []

    def __call__(self, *args):
        parameters = self.learning(*args) if get_world_size() > 1 else []
        if not parameters:
            return self.compute(*args)
        if list(map(id, parameters)) != self.of:
            self.parallel = None
            self.parallel = DistributedDataParallel(_Part(self.compute, parameters))
            self.of = list(map(id, parameters))
        return self.parallel(*args)


class _Part(nn.Module):
    """compute as a module that has these parameters, whatever modules own them."""

    def __init__(self, compute: Callable, parameters: list[nn.Parameter]):
        super().__init__()
        self.compute, self.learning = compute, nn.ParameterList(parameters)

    def forward(self, *args):
        return self.compute(*args)


class ImageShard(Subset):
    """The pairs of a data.PairedDataset that this process validates on: every world_size-th."""

    def __init__(self, pairs: Dataset):
        super().__init__(pairs, range(get_rank(), len(pairs), get_world_size()))
        self.scale = pairs.scale


def shard_images(pairs: Dataset) -> Dataset:
    """The pairs that this process validates on: its ImageShard, or without torchrun all."""
    return pairs if get_world_size() == 1 else ImageShard(pairs)


def gather_scores(own: dict[str, list[float]] | None) -> dict[str, list[float]] | None:
    """Gather the scores of all processes, in the order of the images; None if one process has none."""
    parts, n = all_gather(own), get_world_size()
    if None in parts:
        return None
    count = {name: sum(len(part[name]) for part in parts) for name in own}
    return {name: [parts[i % n][name][i // n] for i in range(count[name])] for name in own}
