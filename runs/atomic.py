"""Write files so that they hold the old content or the new, never a part of one."""

import os
import sys
from collections.abc import Callable
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk; not for folders on Windows."""
    posix = hasattr(os, "O_DIRECTORY")
    if not posix and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: bytes, before_replace: Callable[[], None] | None = None) -> None:
    """Write content so that path holds the old content or the new at any moment, never a part of one.

    before_replace: called when the new content is on the disk and the old one is still at path. Raises OSError.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before_replace is not None:
            before_replace()
        os.replace(aside, path)
    except OSError as error:
        _try_to_remove(aside)  # to leave a full disk its room
        error.filename = str(path)  # the error of a full disk does not name the file
        raise
    fsync_path(path.parent)


def write_or_report(program: str, path: Path, content: bytes) -> bool:
    """Write content as atomic_write does, making folders; report a failure and return False.

    program: the command that the message names.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)
    except OSError as error:
        print(
            f"{program}: error: not written: {path} ({error.strerror or error}); make room, or write elsewhere",
            file=sys.stderr,
        )
        return False
    return True


def _try_to_remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def atomic_append(path: Path, content: bytes) -> None:
    """Add content to a file, all of it or nothing. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(content) < len(content):
                raise OSError("No space left on device")
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
