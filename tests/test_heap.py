"""That freed memory is kept: a process that asks for the same tensors again and again gets no new pages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import heap
import networks

FAULTS = """
import resource, torch, heap
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        a = torch.zeros(10_000_000)
        b = a + 1
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), heap.keep_freed(), faults() and faults())
"""


@pytest.mark.skipif(not heap.keep_freed(), reason="not under glibc, whose heap this is about")
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    before, kept, after = done.stdout.split()
    assert kept == "True" and int(before) > 10_000 > 100 > int(after), done.stdout + done.stderr


def test_elsewhere_nothing_changes(monkeypatch):
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert not heap.keep_freed()
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    monkeypatch.setattr(heap.ctypes, "CDLL", None)
    assert not heap.keep_freed()


@pytest.mark.parametrize("name", ["cpu", None])
def test_commands_keep_it(monkeypatch, name):
    asked = []
    monkeypatch.setattr(heap, "keep_freed", lambda: asked.append(True))
    assert isinstance(networks.choose_device(name), torch.device) and asked
