"""Decoded images on disk: made once, memory-mapped, shared by processes and runs, and bounded.

A file for each image, named for the checksum of its path: a header, then its pixels. It counts as long as the image
has the size and the time of change (mtime) that it had when it was decoded. Files come and go whole.
"""

import hashlib
import mmap
import os
import shutil
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .images import checksum

_HEADER = struct.Struct("<8sQqIII28x")  # magic, the source's bytes and mtime in ns, height, width, checksum
_MAGIC = b"tlw rgb1"  # another number whenever `read_rgb` reads a file to other pixels
_KEEP_FREE = 1 / 20  # of the disk
_ONE_AT_A_TIME = threading.Lock()  # makes room; no part of an ImageCache, which goes to other processes


class CachedImage(NamedTuple):
    """What the cache knows of an image without a look at its pixels: its (H,W) and `checksum`."""

    size: tuple[int, int]
    checksum: int


class ImageCache:
    """The decoded images of a folder.

    limit: bytes that they may take together; those that were not used for longest go first, and a twentieth of the
    disk stays free. beyond: data sets up to so many bytes of pixels are kept in memory instead.
    """

    def __init__(self, folder: str | Path, limit: int = 32 << 30, beyond: int = 512 << 20):
        self.folder, self.limit, self.beyond = Path(folder), limit, beyond
        self.error: str | None = None  # why something could not be stored
        self._in_use: set[Path] = set()
        self._taken: int | None = None

    def find(self, path: Path) -> CachedImage | None:
        """What is cached of the image at path, if it has not changed since."""
        try:
            source, file = os.stat(path), self.file_of(path)
            with open(file, "rb") as cached:
                found = _read_header(cached.read(_HEADER.size), os.fstat(cached.fileno()).st_size)
            if found is None or found[0] != (source.st_size, source.st_mtime_ns):
                return None
            os.utime(file)  # the time of its last use
        except OSError:
            return None
        self._in_use.add(file)
        return found[1]

    def pixels(self, path: Path, expected: CachedImage, rows: tuple[int, int]) -> np.ndarray | None:
        """The pixels, uint8 (H,W,3), mapped from the disk; None if they are not there any more.

        rows: the first and the end of those that will be looked at, which the system may fetch at once.
        """
        try:
            with open(self.file_of(path), "rb") as cached:
                memory = mmap.mmap(cached.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        found = _read_header(memory[: _HEADER.size], len(memory))
        if found is None or found[1] != expected:
            return None
        if hasattr(mmap, "MADV_WILLNEED"):  # not on Windows; a cold patch takes 3 ms instead of 11
            stride, (first, end) = 3 * expected.size[1], rows
            begin = (_HEADER.size + max(0, first) * stride) // mmap.PAGESIZE * mmap.PAGESIZE
            memory.madvise(mmap.MADV_WILLNEED, begin, min(len(memory), _HEADER.size + end * stride) - begin)
        return np.frombuffer(memory, np.uint8, offset=_HEADER.size).reshape(*expected.size, 3)

    def add(self, path: Path, before: os.stat_result, rgb: np.ndarray) -> CachedImage | None:
        """Store the pixels of the image at path, which was read after `before` was taken; None if that is impossible.

        `error` says why.
        """
        file, image = self.file_of(path), CachedImage(rgb.shape[:2], checksum(rgb))
        aside = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _ONE_AT_A_TIME:
                if not self._make_room(_HEADER.size + rgb.nbytes):
                    return None
                self._in_use.add(file)
            try:
                with open(aside, "wb") as out:
                    out.write(_HEADER.pack(_MAGIC, before.st_size, before.st_mtime_ns, *image.size, image.checksum))
                    out.write(rgb.data)
                    out.flush()
                    os.fsync(out.fileno())  # a power failure must not leave a whole file of zeros
                os.replace(aside, file)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            self.error = f"{self.folder}: {error.strerror or error}"
            return None
        return image

    @contextmanager
    def filling(self, paths: Iterable[Path]) -> Iterator[None]:
        """Within, no other process fills the cache with the same images: each is decoded once."""
        name = hashlib.sha256("\n".join(map(os.path.abspath, paths)).encode(errors="surrogateescape")).hexdigest()
        try:
            import fcntl

            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / f"{name[:32]}.lock", "w")
            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):  # without locks: Windows, some network disks, a folder that cannot be written to
            yield
            return
        try:
            yield
        finally:
            Path(file.name).unlink(missing_ok=True)
            file.close()

    def file_of(self, path: Path) -> Path:
        """Where the decoded image at path is, or would be."""
        name = hashlib.sha256(os.path.abspath(path).encode(errors="surrogateescape")).hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.rgb"

    def _make_room(self, size: int) -> bool:
        """Whether there is room for `size` bytes more, after the longest unused images were removed for it."""
        disk = shutil.disk_usage(self.folder)
        if self._taken is None:
            self._taken = sum(stat.st_size for _, stat in self._stored())
        missing = max(self._taken + size - self.limit, size - disk.free + int(disk.total * _KEEP_FREE))
        if missing > 0:
            for file, stat in sorted(self._stored(), key=lambda entry: entry[1].st_mtime_ns):
                if missing <= 0:
                    break
                if file not in self._in_use:
                    file.unlink(missing_ok=True)
                    self._taken -= stat.st_size
                    missing -= stat.st_size
        if missing > 0:
            self.error = f"{self.folder}: no room beyond {self.limit / 2**30:g} GiB, or on the disk"
            return False
        self._taken += size
        return True

    def _stored(self) -> Iterator[tuple[Path, os.stat_result]]:
        for file in self.folder.glob("??/*.rgb*"):
            try:
                yield file, file.stat()
            except OSError:  # another process has just removed it
                pass


def _read_header(data: bytes, file_size: int) -> tuple[tuple[int, int], CachedImage] | None:
    """The source's size and mtime, and what is known of the image; None if the file is not whole."""
    if len(data) < _HEADER.size:
        return None
    magic, size, changed, height, width, crc = _HEADER.unpack(data)
    if magic != _MAGIC or file_size != _HEADER.size + height * width * 3:
        return None
    return (size, changed), CachedImage((height, width), crc)
