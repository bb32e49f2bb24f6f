"""The lock of a run's folder: it names its holder; the system releases it when that process dies."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # all others
    msvcrt = None


class RunFolderError(ValueError):
    """Raised if a run cannot use a folder now."""


def _try_lock(file, shared: bool) -> None:
    """Lock the open file or raise OSError; do nothing on a system without fcntl and msvcrt."""
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif msvcrt is not None:
        # A byte far behind the holder's name: Windows lets no other process read locked bytes.
        os.lseek(file.fileno(), 1 << 30, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def _lock(file, folder: Path, shared: bool = False) -> None:
    """Lock the open file, if the file system has locks. Raises RunFolderError if another process holds it."""
    try:
        _try_lock(file, shared)
    except (BlockingIOError, PermissionError):  # from fcntl and from msvcrt
        file.seek(0)
        holder = " ".join(file.read().split()) or "another process"
        raise RunFolderError(f"--modelpath {folder}: in use by {holder}; wait for it, or name another folder") from None
    except OSError:
        pass


def check_unlocked(folder: Path) -> None:
    """Raise RunFolderError, naming the process, if a run is using the folder."""
    try:
        with open(folder / ".lock") as file:
            _lock(file, folder, shared=True)
    except OSError:  # usually there is no lock file
        pass


HELD: set = set()  # open lock files
# Loader processes inherit open files, and must not keep the lock of a run that was killed.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [file.close() for file in HELD])


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises RunFolderError if another run holds it or it cannot be written."""
    path = folder / ".lock"
    while True:
        try:
            file = open(path, "a+")
        except OSError as error:
            raise RunFolderError(
                f"--modelpath {folder}: cannot be written to ({error.strerror}); name another"
            ) from None
        try:
            _lock(file, folder)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        except FileNotFoundError:  # its holder has just removed it
            pass
        except RunFolderError:
            file.close()
            raise
        file.close()
    HELD.add(file)
    try:
        file.truncate(0)
        file.write(f"{socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        except OSError:  # a leftover file that nobody has locked does no harm
            pass
        HELD.discard(file)
        file.close()
