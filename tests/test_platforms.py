"""What POSIX alone has is guarded: the commands work where it is hidden, with the locks of Windows or without any."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runs import lock
from runs.atomic import atomic_write, fsync_path
from runs.lock import RunFolderError, check_unlocked, locked_run

ROOT = Path(__file__).parents[1]
HIDE = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch, torch.utils.data, torch.distributed, torchvision, lpips
import scipy.signal, matplotlib.pyplot, skimage, PIL.Image
import subprocess, multiprocessing.context, concurrent.futures
for module, names in ((signal, ("SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGHUP", "pthread_kill")),
                      (os, ("register_at_fork", "O_DIRECTORY", "fork", "getuid", "fchmod"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "posix"):
    sys.modules[name] = None
"""


@pytest.fixture
def without_posix(workplace):
    """without_posix(lines): run them in a process where POSIX's names are hidden; its output."""

    def run(lines: str) -> str:
        code = HIDE.format(root=str(ROOT)) + textwrap.dedent(lines)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_commands_without_posix(without_posix, tiny_args):
    """A run trains, saves, resumes and is evaluated; the names are really gone for our own modules."""
    out = without_posix(f"""
        import train, val, convert
        from runs import lock
        from training import stop_signals
        assert lock.fcntl is None and len(stop_signals.STOP_SIGNALS) == 2
        args = {tiny_args!r}
        train.main([*args, "--modelpath", "run"])
        train.main(["--load", "run", "--endepoch", "2"])
        val.main(["--modelpath", "run", "--best", "--device", "cpu"])
    """)
    assert out.count("best") > 2 and Path("run/last.pt").exists() and Path("run/val.json").exists()


class FakeMsvcrt:
    """Windows' locking(): one byte at the file's position, for one holder; others get PermissionError."""

    LK_NBLCK = 2

    def __init__(self):
        self.held = {}

    def locking(self, descriptor, mode, count):
        stat = os.fstat(descriptor)
        place = (stat.st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        assert mode == self.LK_NBLCK and count == 1 and place[1] > 10**6, "the holder's name could not be read"
        if self.held.setdefault(place, descriptor) != descriptor:
            raise PermissionError(13, "Permission denied")


def test_the_lock_of_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", FakeMsvcrt())
    with locked_run(tmp_path):
        for attempt in (lambda: check_unlocked(tmp_path), lambda: locked_run(tmp_path).__enter__()):
            with pytest.raises(RunFolderError, match=rf"in use by .*, process {os.getpid()}, since"):
                attempt()
    check_unlocked(tmp_path)


def test_no_locks_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with locked_run(tmp_path):
        check_unlocked(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_folders_are_not_synced_without_posix(tmp_path, monkeypatch):
    """Windows opens no folder, and syncs a file only if it may write to it."""
    opened, real = [], os.open
    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(os, "open", lambda path, flags, *more: opened.append((path, flags)) or real(path, flags, *more))
    atomic_write(tmp_path / "file", b"content")
    fsync_path(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert opened == [(tmp_path / "file", os.O_RDWR)]
