"""That freed memory is kept: a process that asks for the same tensors again and again gets no new pages."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from training import malloc
from training.device import setup_device

FAULTS = """
import resource, torch
from training import malloc
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        a = torch.zeros(10_000_000)
        b = a + 1
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), malloc.retain_freed_memory(), min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not under glibc, whose heap this is about")
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    before, kept, after = done.stdout.split()
    assert kept == "True" and int(before) > 10_000 > 100 > int(after), done.stdout + done.stderr


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert not malloc.retain_freed_memory()
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    monkeypatch.setattr(malloc.ctypes, "CDLL", None)
    assert not malloc.retain_freed_memory()


def test_an_older_glibc_is_given_what_it_takes(monkeypatch):
    given = []

    class Older:
        @staticmethod
        def mallopt(kind, size):
            given.append((kind, size))
            return int(kind != -3 or size <= 32 << 20)

    monkeypatch.setattr(malloc.sys, "platform", "linux")
    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: Older)
    assert malloc.retain_freed_memory() and given == [(-3, 1 << 30), (-3, 32 << 20), (-1, (1 << 31) - 1)]


@pytest.mark.parametrize("name", ["cpu", None])
def test_commands_keep_it_on_the_cpu(monkeypatch, name):
    asked = []
    monkeypatch.setattr(malloc, "retain_freed_memory", lambda: asked.append(True))
    assert (setup_device(name).type == "cpu") == bool(asked)
