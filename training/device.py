"""The device of a run, and the memory format in which networks are fastest on it."""

import os

import torch
from torch import nn

import configs

from . import malloc


def setup_device(name: str | None) -> torch.device:
    """Set up the device called `name`, by default the GPU if there is one.

    Also turns off TF32, to which convolutions on a GPU would round fp32, also in metrics; on the CPU also makes malloc
    keep freed memory for the next tensors. Raises ValueError if there is no such device.
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
    """Make a GPU compute the same bits in every run, or as fast as it can.

    Call it before the GPU's first operation. An operation without a deterministic algorithm raises RuntimeError later.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # otherwise torch refuses matrix products
    torch.use_deterministic_algorithms(deterministic)


def fast_memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """The memory format in which networks train fastest.

    channels_last, except for fp32 on CPUs without AVX-512: there it doubles the time of the weights' gradients.
    """
    slow = device.type == "cpu" and precision == "fp32" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return torch.contiguous_format if slow else torch.channels_last


def place_frozen(module: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """Move a module that does not learn (a judge, a network to evaluate) to the device, as channels_last.

    With bf16 its convolutions get bf16 weights: the values to which autocast would cast them at each use.
    """
    module.to(device, memory_format=torch.channels_last)
    if precision == "bf16":
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(torch.bfloat16)
    return module


def check_compile(device: torch.device) -> None:
    """Raise ValueError if torch.compile fails on the device, for example without a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # torch and the compiler raise many types
        reason = configs.one_line(str(error), 160)
        raise ValueError(f"--compile: torch.compile does not work here ({reason}); leave it out") from None
