"""The device of a run, and the memory formats in which networks are fastest on it."""

import os

import torch
from torch import nn

import configs

from . import malloc


def setup_device(name: str | None) -> torch.device:
    """Set up the device called `name`, or the best one of this machine.

    It also turns TF32 off, which convolutions on a GPU, and metrics with them, would round fp32 to; and on the CPU it
    keeps freed memory for the next tensors. Raises ValueError if there is no such device.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"--device {name}: not available here ({reason}); use --device cpu, or leave it out") from None
    configs.expect(device.type in ("cpu", "cuda"), "device", name, "cpu or cuda")
    if device.type == "cpu":
        malloc.retain_freed_memory()
    return device


def set_deterministic(deterministic: bool) -> None:
    """Have a GPU compute the same bits in every run, or as fast as it can.

    To be called before its first operation. An operation that has no such algorithm raises RuntimeError, by its name,
    when it comes.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses matrix products
    torch.use_deterministic_algorithms(deterministic)


def fast_memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """The memory format in which networks train fastest.

    channels_last, but for fp32 on CPUs without AVX-512: there the gradients of the weights take twice as long in it.
    """
    slow = device.type == "cpu" and precision == "fp32" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return torch.contiguous_format if slow else torch.channels_last


def place_frozen(module: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """Move a module that does not learn (a judge, a network to evaluate) to the device.

    It gets the memory layout of its fast kernels.

    Under bf16 its convolutions hold bf16 weights, the values that autocast would compute at each use.
    """
    module.to(device, memory_format=torch.channels_last)
    if precision == "bf16":
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(torch.bfloat16)
    return module


def check_compile(device: torch.device) -> None:
    """Raise ValueError if torch.compile does not work on the device, as without a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever it is, of torch's or of the compiler's own
        reason = configs.one_line(str(error), 160)
        raise ValueError(f"--compile: torch.compile does not work here ({reason}); leave it out") from None
