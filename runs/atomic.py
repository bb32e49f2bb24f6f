"""Write files atomically: at any moment they hold the old content or the new, never a part."""

import os
import sys
from collections.abc import Callable
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on the disk (not for folders on Windows)."""
    posix = hasattr(os, "O_DIRECTORY")
    if not posix and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, content: bytes, before_replace: Callable[[], None] | None = None) -> None:
    """Replace the content of path atomically. Raises OSError.

    before_replace: called when the new content is on the disk and the old one is still at path.
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
        _try_to_remove(aside)  # free the space, if the disk is full
        error.filename = str(path)  # write() and fsync() name no file in their errors
        raise
    fsync_path(path.parent)


def write_or_report(program: str, path: Path, content: bytes) -> bool:
    """Call atomic_write, making folders; print an error and return False if it fails.

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
    """Append content to a file, all of it or nothing. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(content) < len(content):
                raise OSError("No space left on device")
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
