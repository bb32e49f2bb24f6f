"""Noise, means, minima and BatchNorm's statistics of a batch that several processes share.

The processes of a torch.distributed group have equally many samples, in the order of ranks. Each gets its part of what
a single process with all samples would compute. A process may also compute its samples in equal parts, one after the
other (`part`): noise is then drawn for all parts together, but means are those of a single part.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes that share a batch; 0 and 1 without a group."""
    grouped = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)


# The arguments of `part`, with the noise that earlier parts drew before the list to which new noise is added.
_part: tuple[int, int, Iterator[Tensor], list[Tensor]] = 0, 1, iter(()), []


@contextmanager
def part(number: int, count: int, noise: list[Tensor]) -> Iterator[None]:
    """Make the samples inside this context part `number` of `count` equal parts of this process's batch.

    noise: one list for all parts, empty before the first: global_rand keeps its draws in it.
    """
    global _part
    before, _part = _part, (number, count, iter([*noise]), noise)
    try:
        yield
    finally:
        _part = before


def global_rand(*shape: int, batch_dim: int = 0, device=None) -> Tensor:
    """This process's part, of the given shape, of torch.rand for the global batch along batch_dim."""
    rank, world_size = rank_and_world_size()
    number, parts, found, drawn = _part
    count = shape[batch_dim]
    noise = next(found, None)
    if noise is None:
        noise = torch.rand(*shape[:batch_dim], world_size * parts * count, *shape[batch_dim + 1 :], device=device)
        drawn += [noise] * (parts > 1)
    return noise.narrow(batch_dim, (rank * parts + number) * count, count)


class _Sum(torch.autograd.Function):
    """The sum over processes, of gradients too, because each process's x affects the losses of all."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def all_reduce_mean(x: Tensor) -> Tensor:
    """Average x over the processes: the mean of a process's samples becomes that of the global batch.

    All processes must call it. Gradients are right if the processes' gradients are averaged, as
    DistributedDataParallel does.
    """
    world_size = rank_and_world_size()[1]
    return _Sum.apply(x) / world_size if world_size > 1 else x


def all_reduce_min(x: Tensor) -> Tensor:
    """The element-wise minimum of x over the processes, without a gradient. All processes must call it."""
    least = x.detach().clone(memory_format=torch.contiguous_format)
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the global batch's statistics on CPUs, where nn.SyncBatchNorm does not work."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.to(self.weight.dtype)  # under autocast x is bf16
        centre = all_reduce_mean(values.mean(dim=(0, 2, 3), keepdim=True))
        centred = values - centre
        variance = all_reduce_mean(centred.square().mean(dim=(0, 2, 3), keepdim=True))
        with torch.no_grad():
            count = rank_and_world_size()[1] * x.numel() // x.shape[1]
            self.running_mean.lerp_(centre.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        normal = centred * (variance + self.eps).rsqrt()
        return (normal * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)


def convert_global_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Make module's BatchNorm layers use the global batch's statistics, and return it; names stay."""
    if rank_and_world_size()[1] == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = GlobalBatchNorm2d  # keeps parameters, buffers and mode
    return module
