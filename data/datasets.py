"""(LR, HR) pairs from folders of images, decoded in memory or on disk."""

import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .cache import CachedImage, ImageCache
from .images import GreyImage, checksum, estimate_bytes, passed_over, read_rgb, to_grey
from .imresize import imresize
from .partners import Folders, find_lr_among_hr, match, rooted, unique_names
from .progress import show_progress

# 8-bit level -> value in [-1,1]: a look-up is exact and saves a float64 copy of the image.
_LEVELS = (np.arange(256) / 255 * 2 - 1).astype(np.float32)
# How far an LR pixel's kernel reaches beyond its own HR pixels, in LR pixels.
_REACH = 2
# HR rows above and below a part that its LR may depend on, for reading ahead.
_AROUND = 32


def make_pair(rgb: np.ndarray, scale: int, multiple: int, round_lr: bool = False) -> tuple[Tensor, Tensor]:
    """Return an HR image and its bicubic downscaling as tensors.

    Args:
        rgb: uint8 (H,W,3) or grey (H,W,1).
        multiple: HR is cropped at the bottom and right to multiples of it; itself a multiple of scale.
        round_lr: clip LR to the valid range and round it to 8 bits; otherwise it may exceed the range slightly.

    Returns lr (3,H/scale,W/scale) and hr (3,H,W), H and W cropped, float32 in [-1,1], computed in float64; for grey,
    with one channel. Raises ValueError if multiple is no multiple of scale or the image is smaller than it.
    """
    _check_multiple(scale, multiple)
    _check_size(rgb.shape[:2], multiple, name="image")
    height, width = (x // multiple * multiple for x in rgb.shape[:2])
    rgb = rgb[:height, :width]
    return torch.from_numpy(_chw(_downscale(rgb, scale, round_lr))), torch.from_numpy(_LEVELS[_chw(rgb)])


class ImageReadError(ValueError):
    """Error for an image that could be read when the run began, and no longer can or has changed."""


class PairedDataset(Dataset):
    """Whole images as (lr, hr) float32 tensors in [-1,1]: (3,h,w) and (3,scale*h,scale*w).

    Args:
        folders: folders of HR images, searched as by `list_images`.
        multiple: HR is cropped to multiples of it, itself a multiple of scale.
        lr_folders: folders of LR images, matched by place and name as in `data.partners` and cropped with HR; None: LR
            is HR's bicubic downscaling (see `make_pair`).
        lr_template: the LR's stem, with {} for the HR's, such as "{}_small"; None: all usual forms.
        round_lr: as in `make_pair`.
        cache_bytes: memory for decoded images; the others are decoded on each use.
        cache: the disk cache for a data set of more than `cache.beyond` bytes; None: memory only.
        degradation: makes LR from a part of HR, as in `data.degradations`, if `crop` is given random numbers.
        progress: show a progress bar.
        bad_images: "stop" or "skip" at an image that is unreadable, damaged, too small, without an LR partner, or with
            one that is unreadable or of the wrong size.
        grey: convert images to luminance, (1,h,w) and (1,scale*h,scale*w), in arrays (h,w,1); LR is made from that.

    Attributes. paths: the HR files. names: their stems, or paths if stems collide. sizes: HR's (H,W) after cropping.
    checksums: of the pixels of HR and, with lr_folders, LR. skipped: HR file -> the reason for leaving it out. notes:
    lines about the folders for the user.

    The constructor reads every file that the cache does not hold. It raises ValueError for the first bad image, or with
    "skip" if all are bad. Reading a pair raises ImageReadError if a file has changed since or cannot be read.
    """

    def __init__(
        self,
        folders: Folders,
        scale: int,
        multiple: int,
        *,
        lr_folders: Folders | None = None,
        lr_template: str | None = None,
        round_lr: bool = False,
        cache_bytes: int = 2 << 30,
        cache: ImageCache | None = None,
        degradation: Callable | None = None,
        progress: bool = True,
        bad_images: str = "stop",
        grey: bool = False,
    ) -> None:
        _check_multiple(scale, multiple)
        if bad_images not in ("stop", "skip"):
            raise ValueError(f"bad_images={bad_images}; expected stop or skip")
        self.scale, self.multiple, self.round_lr, self._stop = scale, multiple, round_lr, bad_images == "stop"
        self.degradation, self.grey = degradation, grey
        folders = [folders] if isinstance(folders, str | Path) else list(folders)
        files = rooted(folders)
        self.paths = list(files)
        self.notes = passed_over(folders)
        self.sizes: list[tuple[int, int]] = []
        self.checksums: list[int] = []
        self.skipped: dict[Path, str] = {}
        self._partners: dict[Path, Path] | None = None
        if lr_folders is not None:
            lr_folders = [lr_folders] if isinstance(lr_folders, str | Path) else list(lr_folders)
            self._partners = match(files, rooted(lr_folders), scale, lr_template)
            self.notes += passed_over(lr_folders)
            apart = len(folders) == len(lr_folders)
            self._drop_lonely(
                {path: lr_folders[at : at + 1] if apart else lr_folders for path, (at, _) in files.items()}, lr_template
            )
        self._disk = cache
        self._known: dict[Path, CachedImage] = {}  # each file's size and checksum
        self._memory: dict[int, tuple[np.ndarray | None, np.ndarray]] = {}  # LR and HR, both cropped
        self._memory_left = cache_bytes
        self._lr: dict[int, np.ndarray] = {}  # LR of images in the disk cache, if it was made whole
        self._read_all(progress)
        if not self.paths:
            first = next(iter(self.skipped.values()))
            raise ValueError(f"all of {len(files)} images are bad, the first: {first}")
        names = unique_names(files)
        self.names = [names[path] for path in self.paths]
        if both := find_lr_among_hr({path: self._known[path].size for path in self.paths}):
            self.notes.append(f"LR among HR? {both} are both taken for HR images; name the folder of HR alone")

    def _skip(self, path: Path, reason: str) -> None:
        if self._stop:
            raise ValueError(reason)
        self.skipped[path] = reason

    def _drop_lonely(self, places: dict[Path, list], template: str | None) -> None:
        partners = self._partners or {}
        for path in self.paths:
            if path not in partners:
                stem, where = path.stem, " or ".join(map(str, places[path]))
                wanted = (
                    template.replace("{}", stem) if template else f"{stem}, {stem}x{self.scale}, {stem}_LR or the like"
                )
                remedy = "" if template else ', or say how it is named, as by --lr-template "{}_small"'
                self._skip(path, f"{path} has no LR partner; expected {wanted} in {where}, add or remove it{remedy}")
        self.paths = [path for path in self.paths if path in partners]

    def _files(self, path: Path) -> list[Path]:
        """The HR file and, if there is one, its LR file."""
        return [path] if self._partners is None else [path, self._partners[path]]

    def _read_all(self, progress: bool) -> None:
        files = [file for path in self.paths for file in self._files(path)]
        good, stored = [], len(files)
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(min(8, os.cpu_count() or 1)))
            if self._disk is not None and not self._find_stored(files):
                if sum(pool.map(estimate_bytes, files)) > self._disk.beyond:
                    stack.enter_context(self._disk.filling(files))
                    self._find_stored(files)  # another process may have stored them by now
                    stored = len(self._known)
                else:
                    self._disk, self._known = None, {}
            found = show_progress(pool.map(self._check, self.paths), "reading images", len(self), progress)
            for path, checked in zip(self.paths, found):
                if isinstance(checked, ValueError):
                    self._skip(path, str(checked))
                    continue
                images, pair = checked
                self._known |= zip(self._files(path), images)
                self.sizes.append(self._cropped(images[0].size))
                self.checksums.append(_combined([image.checksum for image in images]))
                if pair is not None:
                    self._keep(len(good), *pair)
                good.append(path)
        self.paths = good
        if self._disk is not None and self._disk.error:
            self.notes.append(
                f"not all images fit into the cache, the others are decoded for each use ({self._disk.error}); "
                "make room, raise --cache-size, or name another folder with --cache"
            )
        elif self._disk is not None and stored < len(self._known):
            self.notes.append(f"{len(self._known) - stored} decoded images were stored in {self._disk.folder}")

    def _find_stored(self, files: list[Path]) -> bool:
        """Look up the unknown ones of files in the disk cache; return True if it has them all."""
        found = {file: self._disk.find(file) for file in files if self._disk and file not in self._known}
        self._known |= {file: image for file, image in found.items() if image is not None}
        return None not in found.values()

    def _check(self, path: Path) -> tuple[list[CachedImage], tuple | None] | ValueError:
        """The headers of a pair's files, and the pair (lr or None, hr) for the memory; or the error."""
        try:
            read = [self._read(file) for file in self._files(path)]
            images, pixels = [image for image, _ in read], [rgb for _, rgb in read if rgb is not None]
            self._check_sizes(path, *(image.size for image in images))
        except ValueError as error:
            return error
        if len(pixels) < len(images) or self._memory_left <= 0:
            return images, None
        lr, hr = self._cropped_pair(*map(to_grey, pixels) if self.grey else pixels)
        return images, (self._downscaled(hr) if lr is None and self.degradation is None else lr, hr)

    def _read(self, file: Path) -> tuple[CachedImage, np.ndarray | None]:
        """A file's header, and its pixels unless they are in the disk cache."""
        if file in self._known:
            return self._known[file], None
        before = file.stat() if file.exists() else None
        rgb = read_rgb(file)
        image = self._disk.add(file, before, rgb) if self._disk is not None and before is not None else None
        return (image, None) if image is not None else (CachedImage(rgb.shape[:2], checksum(rgb)), rgb)

    def _check_sizes(self, path: Path, hr: tuple[int, int], lr: tuple[int, int] | None = None) -> None:
        _check_size(hr, self.multiple, str(path))
        height, width = (x // self.scale for x in hr)
        if lr is not None and lr != (height, width):
            raise ValueError(
                f"{self._files(path)[1]}, LR partner of {path}, is {lr[0]}x{lr[1]}; "
                f"expected {height}x{width} at scale={self.scale}, replace one of them"
            )

    def _keep(self, index: int, lr: np.ndarray | None, hr: np.ndarray) -> None:
        size = hr.nbytes + (0 if lr is None else lr.nbytes)
        if size <= self._memory_left:
            self._memory[index] = lr, hr
            self._memory_left -= size
        else:
            self._memory_left = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return to_tensors(*self.crop(index, (0, 0), self.sizes[index]))

    def crop(
        self,
        index: int,
        start: tuple[int, int],
        size: tuple[int, int],
        random: np.random.Generator | None = None,
        alone: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut a part out of pair `index`: lr (h,w,3), uint8 or float32 in [-1,1], and hr uint8 (H,W,3).

        Args:
            start: (top, left) in HR pixels, multiples of scale.
            size: (H,W) in HR pixels, multiples of scale.
            random: for the degradation, if there is one; None: no degradation.
            alone: downscale the part as if it were a whole image, unless LR has its own files.

        Without degradation or `alone`, lr is bit for bit a part of the whole image's LR. See `to_tensors`.
        """
        lr, hr = self._memory.get(index) or self._load(index, (start[0] - _AROUND, start[0] + size[0] + _AROUND))
        if self.degradation is not None and random is not None:
            lr = self.degradation(hr, start, size, self.scale, random)
        elif alone and self._partners is None:
            lr = self._downscaled(hr[start[0] : start[0] + size[0], start[1] : start[1] + size[1]])
        else:
            lr = self._part_of_lr(index, lr, hr, start, size)
        return lr, hr[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]

    def _part_of_lr(
        self, index: int, lr: np.ndarray | GreyImage | None, hr: np.ndarray | GreyImage, start, size
    ) -> np.ndarray:
        scale = self.scale
        top, left, height, width = (x // scale for x in (*start, *size))
        lr = self._lr.get(index) if lr is None else lr
        if lr is not None:
            return lr[top : top + height, left : left + width]
        # Downscale only the pixels under the part's kernels.
        above, before = min(top, _REACH), min(left, _REACH)
        rows = slice((top - above) * scale, (top + height + _REACH) * scale)
        columns = slice((left - before) * scale, (left + width + _REACH) * scale)
        lr = self._downscaled(hr[rows, columns])[above : above + height, before : before + width]
        if lr.shape[:2] == tuple(x // scale for x in hr.shape[:2]) and lr.nbytes <= self._memory_left:
            self._lr[index] = lr  # whole images take long, and are used again
            self._memory_left -= lr.nbytes
        return lr

    def _downscaled(self, hr: np.ndarray) -> np.ndarray:
        return _downscale(hr, self.scale, self.round_lr)

    def _load(self, index: int, rows: tuple[int, int]) -> tuple[np.ndarray | GreyImage | None, np.ndarray | GreyImage]:
        """LR, uint8 (h,w,3 or 1), or None without its own file, and HR, uint8 (H,W,3 or 1), both cropped.

        rows: (first, end) of the HR rows that will be used.
        """
        parts = (rows, (rows[0] // self.scale, rows[1] // self.scale))
        lr, hr = self._cropped_pair(*map(self._pixels, self._files(self.paths[index]), parts))
        if not self.grey:
            return lr, hr
        return None if lr is None else GreyImage(lr), GreyImage(hr)

    def _pixels(self, file: Path, rows: tuple[int, int]) -> np.ndarray:
        """The pixels of a file, from the disk cache or decoded. Raises ImageReadError if they have changed."""
        known = self._known[file]
        stored = None if self._disk is None else self._disk.pixels(file, known, rows)
        if stored is not None:
            return stored
        try:
            rgb = read_rgb(file)
        except ValueError as error:
            reason = str(error).removesuffix("; remove or replace it")
            raise ImageReadError(f"{reason}; it is not what it was when the run began, put it back") from None
        if CachedImage(rgb.shape[:2], checksum(rgb)) != known:
            raise ImageReadError(
                f"{file} has changed; expected images not to change while a run reads them, put it back"
            )
        return rgb

    def _cropped(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.multiple * self.multiple, size[1] // self.multiple * self.multiple

    def _cropped_pair(self, hr: np.ndarray, lr: np.ndarray | None = None) -> tuple[np.ndarray | None, np.ndarray]:
        height, width = self._cropped(hr.shape[:2])
        return None if lr is None else lr[: height // self.scale, : width // self.scale], hr[:height, :width]


def to_tensors(lr: np.ndarray, hr: np.ndarray) -> tuple[Tensor, Tensor]:
    """Convert the arrays of `PairedDataset.crop` to float32 tensors in [-1,1], (3,h,w) and (3,H,W)."""
    lr = _LEVELS.take(_chw(lr)) if lr.dtype == np.uint8 else _chw(lr)
    return torch.from_numpy(lr), torch.from_numpy(_LEVELS.take(_chw(hr)))


def _check_multiple(scale: int, multiple: int) -> None:
    if multiple < 1 or multiple % scale:
        raise ValueError(f"multiple={multiple} is not divisible by scale={scale}; use {nearest(multiple, scale)}")


def nearest(value: int, scale: int) -> str:
    """The multiples of scale around value, as text."""
    below = value // scale * scale
    return f"{below} or {below + scale}" if below > 0 else f"{scale}"


def _combined(checksums: list[int]) -> int:
    """One checksum of an HR image's and, with LR files, its LR image's."""
    return checksums[0] if len(checksums) == 1 else zlib.crc32(struct.pack("<2I", *checksums))


def _check_size(size: tuple[int, int], multiple: int, name: str) -> None:
    height, width = size
    if min(size) < multiple:
        least = f"{multiple}x{multiple}, the smallest image that can be cropped to multiples of {multiple}"
        raise ValueError(f"{name} is {height}x{width}, smaller than {least}; remove it")


def _chw(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _downscale(rgb: np.ndarray, scale: int, round_lr: bool) -> np.ndarray:
    """HR uint8 (H,W,3 or 1) -> LR float32 (h,w,3 or 1), about [-1,1], computed in float64."""
    lr = imresize(rgb / 255, scale)
    if round_lr:
        lr = np.rint(lr.clip(0, 1) * 255) / 255
    return (lr * 2 - 1).astype(np.float32)
