"""Decoded images on disk: written once, memory-mapped, shared by processes and runs, limited in size.

Each image has a file with a header and its pixels, named after a hash of the image's path, size in bytes and mtime, so
that a changed image is decoded anew. Files are written and removed atomically.
"""

import hashlib
import mmap
import os
import shutil
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .images import checksum

_HEADER = struct.Struct("<8sIII44x")  # magic, height, width, checksum
_MAGIC = b"tlw rgb1"  # change the number whenever `read_rgb` decodes a file to other pixels
_KEEP_FREE = 1 / 20  # of the disk
_ONE_AT_A_TIME = threading.Lock()  # for _make_room; not in ImageCache, which is pickled for other processes


class CachedImage(NamedTuple):
    """A cached image's header: (H,W), and `checksum` of its pixels."""

    size: tuple[int, int]
    checksum: int


class ImageCache:
    """The decoded images of a folder.

    limit: the most bytes of all files; the least recently used ones are removed first, and a twentieth of the disk
    stays free. beyond: data sets of up to so many bytes of pixels are kept in memory instead.
    """

    def __init__(self, folder: str | Path, limit: int = 32 << 30, beyond: int = 512 << 20):
        self.folder, self.limit, self.beyond = Path(folder), limit, beyond
        self.error: str | None = None  # why an image could not be stored
        self._files: dict[Path, Path] = {}  # image -> cache file, of those that this process has found or stored
        self._seen: set[Path] = set()  # those of them whose header was compared
        self._taken: int | None = None

    def find(self, path: Path) -> CachedImage | None:
        """The header of the image at path; None if it is not cached or has changed since."""
        try:
            file = self.file_of(path, os.stat(path))
            with open(file, "rb") as cached:
                found = _read_header(cached.read(_HEADER.size), os.fstat(cached.fileno()).st_size)
            os.utime(file)  # marks it as used
        except OSError:
            return None
        if found is not None:
            self._files[path] = file
        return found

    def pixels(self, path: Path, expected: CachedImage, rows: tuple[int, int]) -> np.ndarray | None:
        """The pixels, uint8 (H,W,3), mapped from the disk; None if they are not or no longer there.

        expected: what `find` or `add` returned.
        rows: (first, end) of the rows that will be used, for the system to read ahead.
        """
        try:
            with open(self._files[path], "rb") as cached:
                memory = mmap.mmap(cached.fileno(), 0, access=mmap.ACCESS_READ)
        except (KeyError, OSError, ValueError):  # ValueError: an empty file
            return None
        if len(memory) != _file_size(*expected.size):
            return None
        # Compared only once: the header is away from the rows, and reading it from the disk takes as long as they do.
        if path not in self._seen and _read_header(memory[: _HEADER.size], len(memory)) != expected:
            return None
        self._seen.add(path)
        if hasattr(mmap, "MADV_WILLNEED"):  # not on Windows; a cold patch takes 3 ms instead of 11
            stride, (first, end) = 3 * expected.size[1], rows
            begin = (_HEADER.size + max(0, first) * stride) // mmap.PAGESIZE * mmap.PAGESIZE
            memory.madvise(mmap.MADV_WILLNEED, begin, min(len(memory), _HEADER.size + end * stride) - begin)
        return np.frombuffer(memory, np.uint8, offset=_HEADER.size).reshape(*expected.size, 3)

    def add(self, path: Path, before: os.stat_result, rgb: np.ndarray) -> CachedImage | None:
        """Store the pixels, uint8 (H,W,3), of the image at path; None, and `error` set, if that fails.

        before: the image's stat from before it was read. After an error nothing is stored any more.
        """
        if self.error is not None:
            return None
        file, image = self.file_of(path, before), CachedImage(rgb.shape[:2], checksum(rgb))
        aside = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _ONE_AT_A_TIME:
                if not self._make_room(_file_size(*image.size)):
                    return None
                self._files[path] = file  # keeps other threads from removing it
            try:
                with open(aside, "wb") as out:
                    out.write(_HEADER.pack(_MAGIC, *image.size, image.checksum))
                    out.write(np.ascontiguousarray(rgb).data)
                    out.flush()
                    os.fsync(out.fileno())  # a power failure must not leave a whole file of zeros
                os.replace(aside, file)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            self._files.pop(path, None)
            self.error = f"{self.folder}: {error.strerror or error}"
            return None
        return image

    @contextmanager
    def filling(self, paths: Iterable[Path]) -> Iterator[None]:
        """Hold a lock against other processes that would cache the same images, where the system has locks."""
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

    def file_of(self, path: Path, stat: os.stat_result) -> Path:
        """The path of the cache file for the image at path with this stat."""
        source = f"{os.path.abspath(path)}\n{stat.st_size} {stat.st_mtime_ns}"
        name = hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()[:40]
        return self.folder / name[:2] / f"{name}.rgb"

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used images until `size` bytes more fit; False if they cannot."""
        disk = shutil.disk_usage(self.folder)
        if self._taken is None:
            self._taken = sum(stat.st_size for _, stat in self._stored())
        missing = max(self._taken + size - self.limit, size - disk.free + int(disk.total * _KEEP_FREE))
        if missing > 0:
            in_use, yesterday = set(self._files.values()), time.time() - 86400
            for file, stat in sorted(self._stored(), key=lambda entry: entry[1].st_mtime_ns):
                if missing <= 0:
                    break
                # Other suffixes are files being written, or left behind by a killed process if they are old.
                if file not in in_use and (file.suffix == ".rgb" or stat.st_mtime < yesterday):
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


def _file_size(height: int, width: int) -> int:
    return _HEADER.size + height * width * 3


def _read_header(data: bytes, file_size: int) -> CachedImage | None:
    """The header in data; None if the file is incomplete or of another version."""
    if len(data) < _HEADER.size:
        return None
    magic, height, width, crc = _HEADER.unpack(data)
    return CachedImage((height, width), crc) if magic == _MAGIC and file_size == _file_size(height, width) else None
