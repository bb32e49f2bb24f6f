"""The information needed to repeat a run: command, versions, machine, images; logged at each start."""

import os
import platform
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from runs.output import ROOT

from . import distributed
from .experiment import Experiment

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "lpips")


def start_entry(experiment: Experiment) -> dict:
    """The log entry that describes a start."""
    e, cuda = experiment, experiment.device.type == "cuda"
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    cpu = f"{platform.machine()} CPU ({capability}), {threads} thread{'s' * (threads > 1)}"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": command_line(),
        "folder": os.getcwd(),
        "device": torch.cuda.get_device_name(e.device) if cuda and torch.cuda.is_available() else cpu,
        "processes": distributed.get_world_size(),
        "versions": versions(),
        "images": {"training": _described(e.patches.checksums()), "validation": _described(e.validation.checksums)},
    }


def command_line() -> str:
    """The command that started this process; empty if it is not train.py."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return f"{distributed.launch_command()} {shlex.join(sys.argv)}" if name == "train.py" else ""


def versions() -> dict[str, str]:
    """The versions of Python, this code (its commit, if known) and the packages that results depend on."""
    found = {"python": platform.python_version(), "this code": _commit()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return {name: text for name, text in found.items() if text}


def _commit() -> str:
    """The commit of the working copy, with -dirty if tracked files are changed; empty without git."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--tags"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _described(checksums: Sequence[int]) -> dict:
    """The number of images, and one checksum of their pixels that does not depend on their order."""
    return {"count": len(checksums), "checksum": f"{zlib.crc32(repr(sorted(checksums)).encode()):08x}"}
