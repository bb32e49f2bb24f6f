"""What couples the images of a batch where several processes share it: noise, means, minima, BatchNorm's statistics.

Each process of a torch.distributed group has equally many rows of the batch, in the order of ranks. In a single process
everything here is torch's own, and in several it gives each the rows of what a single one would compute.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes that share a batch; 0 and 1 where there is no group."""
    grouped = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)


def global_rand(*shape: int, rows: int = 0, device=None) -> Tensor:
    """torch.rand of this shape, dimension `rows` being the batch's: all processes draw for the whole batch."""
    rank, processes = rank_and_world_size()
    count = shape[rows]
    whole = torch.rand(*shape[:rows], processes * count, *shape[rows + 1 :], device=device)
    return whole.narrow(rows, rank * count, count)


class _Sum(torch.autograd.Function):
    """The sum over the processes; of the gradients too, for each process's x acts on the losses of all."""

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
    """x averaged over the processes, each of which must call this; what is a mean over rows becomes the whole batch's.

    Gradients flow as if the processes' losses were averaged, which DistributedDataParallel does.
    """
    processes = rank_and_world_size()[1]
    return _Sum.apply(x) / processes if processes > 1 else x


def all_reduce_min(x: Tensor) -> Tensor:
    """The element-wise minimum of x over the processes, each of which must call this; without a gradient."""
    least = x.detach().clone(memory_format=torch.contiguous_format)
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the whole batch's statistics, for the CPU, which nn.SyncBatchNorm does not know."""

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
    """module, whose BatchNorm layers take the whole batch's statistics where processes share it; names stay."""
    if rank_and_world_size()[1] == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = GlobalBatchNorm2d  # parameters, buffers and mode stay as they are
    return module
