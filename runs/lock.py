"""One run, one folder: a lock that names its holder, and that the system lifts when that process dies."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RunFolderError(ValueError):
    """A folder that a run cannot have now."""


def _lock(file, folder: Path, how: int) -> None:
    """Lock the open file as fcntl.flock does, on file systems that have locks.

    Raises RunFolderError if another process has locked it.
    """
    import fcntl  # not on Windows, where val.py needs none of this

    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = " ".join(file.read().split()) or "another process"
        raise RunFolderError(f"--modelpath {folder}: in use by {holder}; wait for it, or name another folder") from None
    except OSError:
        pass


def check_unlocked(folder: Path) -> None:
    """Raise RunFolderError, naming the run, if a run is going on in the folder."""
    import fcntl

    try:
        with open(folder / ".lock") as file:
            _lock(file, folder, fcntl.LOCK_SH)
    except OSError:  # most often: there is none
        pass


HELD: set = set()  # open lock files
# A process that loads data must not keep the lock of a run that was killed.
os.register_at_fork(after_in_child=lambda: [file.close() for file in HELD])


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process. Raises RunFolderError if another run has it."""
    import fcntl

    path = folder / ".lock"
    while True:
        try:
            file = open(path, "a+")
        except OSError as error:
            raise RunFolderError(
                f"--modelpath {folder}: cannot be written to ({error.strerror}); name another"
            ) from None
        try:
            _lock(file, folder, fcntl.LOCK_EX)
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
        except OSError:  # a lock that nobody holds is none
            pass
        HELD.discard(file)
        file.close()
