"""(LR, HR) pairs from folders of images, and random patches of them.

Every random choice is a pure function of (seed, epoch, index): worker counts and interruptions change nothing.
"""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from .images import read_rgb
from .imresize import imresize
from .partners import Folders, match, rooted, unique_names

# What each 8-bit level is in [-1,1]: a look-up is exact and saves the float64 copy of an image.
_LEVELS = (np.arange(256) / 255 * 2 - 1).astype(np.float32)
# How far an LR pixel's kernel reaches beyond its own HR pixels, in LR pixels.
_REACH = 2


def make_pair(rgb: np.ndarray, scale: int, multiple: int, round_lr: bool = False) -> tuple[Tensor, Tensor]:
    """One HR image and its bicubic downscaling.

    rgb: uint8 (H,W,3), cropped at the bottom and right to multiples of `multiple`, itself a multiple of scale.
    round_lr: clip LR to the valid range and round it to 8 bits; otherwise it may leave the range by a little.
    Returns lr (3,H/scale,W/scale) and hr (3,H,W), float32 in [-1,1], computed in float64 and cast last.

    Raises ValueError where multiple does not suit the scale or the image is smaller than it.
    """
    _check_multiple(scale, multiple)
    rgb = _crop(rgb, multiple, name="image")
    return torch.from_numpy(_chw(_downscale(rgb, scale, round_lr))), torch.from_numpy(_LEVELS[_chw(rgb)])


class ImageReadError(ValueError):
    """Images that could be read when the run began, and not any more."""


class PairedDataset(Dataset):
    """Whole images as (lr, hr) float32 tensors in [-1,1]: (3,h,w) and (3,scale*h,scale*w).

    folders: HR images, searched as `list_images` does; each is cropped to multiples of `multiple`.
    lr_folders: LR images, taken as they are; without them LR is HR's bicubic downscaling (see `make_pair`).
    Matched by file stem ("0001" or DIV2K's "0001x4"), then by folder below its root, then by the root's position.
    cache_bytes: decoded images are kept up to this size; the others are decoded again on each use.
    bad_images: "stop" or "skip", what to do with an image that is unreadable, damaged, too small, without an LR
    partner or with one that is unreadable or of the wrong size.
    paths: the HR files; names: their stems, or paths where stems collide; sizes: HR's (H,W) after cropping;
    skipped: the HR files left out, each with the reason in one line.

    Every file is read once at construction. Raises ValueError for the first bad image, or, with "skip", where all are.
    Reading a pair raises ImageReadError where a file is no longer what it was then.
    """

    def __init__(
        self,
        folders: Folders,
        scale: int,
        multiple: int,
        *,
        lr_folders: Folders | None = None,
        round_lr: bool = False,
        cache_bytes: int = 2 << 30,
        progress: bool = True,
        bad_images: str = "stop",
    ) -> None:
        _check_multiple(scale, multiple)
        if bad_images not in ("stop", "skip"):
            raise ValueError(f"bad_images={bad_images}; expected stop or skip")
        self.scale, self.multiple, self.round_lr, self._stop = scale, multiple, round_lr, bad_images == "stop"
        files = rooted(folders)
        self.paths = list(files)
        self.sizes: list[tuple[int, int]] = []
        self.skipped: dict[Path, str] = {}
        self._partners = None
        if lr_folders is not None:
            self._partners = match(files, rooted(lr_folders), scale)
            self._drop_lonely()
        self._cache: list[tuple[np.ndarray | None, np.ndarray]] = []
        self.checksums: list[int] = []  # of the pixels, to know them again
        self._read_all(cache_bytes, progress)
        if not self.paths:
            first = next(iter(self.skipped.values()))
            raise ValueError(f"all of {len(files)} images are bad, the first: {first}")
        names = unique_names(files)
        self.names = [names[path] for path in self.paths]

    def _skip(self, path: Path, reason: str) -> None:
        if self._stop:
            raise ValueError(reason)
        self.skipped[path] = reason

    def _drop_lonely(self) -> None:
        for path in self.paths:
            if path not in self._partners:
                names = f"{path.stem} or {path.stem}x{self.scale}"
                self._skip(path, f"{path} has no LR partner; expected {names} in lr_folders, add or remove it")
        self.paths = [path for path in self.paths if path in self._partners]

    def _read_all(self, cache_bytes: int, progress: bool) -> None:
        left, good = cache_bytes, []

        def read(path: Path) -> tuple[np.ndarray | None, np.ndarray, int] | ValueError:
            try:
                lr, hr = self._decode(path)
            except ValueError as error:
                return error
            # Once the cache is full a downscaling would be thrown away.
            return (self._downscaled(hr) if lr is None and left > 0 else lr), hr, _checksum(lr, hr)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            # disable=None: the bar shows on a terminal only, so that logs stay clean.
            hidden = None if progress else True
            images = tqdm(pool.map(read, self.paths), "reading images", len(self), leave=False, disable=hidden)
            for path, image in zip(self.paths, images):
                if isinstance(image, ValueError):
                    self._skip(path, str(image))
                    continue
                lr, hr, checksum = image
                good.append(path)
                self.checksums.append(checksum)
                self.sizes.append(hr.shape[:2])
                size = hr.nbytes + (0 if lr is None else lr.nbytes)
                if size <= left:
                    self._cache.append((lr, hr))
                    left -= size
                else:
                    left = 0
        self.paths = good

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.crop(index, (0, 0), self.sizes[index])

    def crop(self, index: int, start: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The part of pair `index` from HR pixel start (top, left), of HR size (H,W), all multiples of scale.

        lr (3,H/scale,W/scale) is that part of the whole image's LR, bit by bit; hr is (3,H,W).
        """
        scale = self.scale
        lr, hr = self._cache[index] if 0 <= index < len(self._cache) else self._read_again(index)
        top, left = (x // scale for x in start)
        height, width = (x // scale for x in size)
        if lr is None:
            # Downscale no more than the kernels under the window see.
            above, before = min(top, _REACH), min(left, _REACH)
            rows = slice((top - above) * scale, (top + height + _REACH) * scale)
            columns = slice((left - before) * scale, (left + width + _REACH) * scale)
            lr = self._downscaled(hr[rows, columns])[above : above + height, before : before + width]
        else:
            lr = lr[top : top + height, left : left + width]
        hr = hr[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
        return torch.from_numpy(_chw(lr)), torch.from_numpy(_LEVELS[_chw(hr)])

    def _downscaled(self, hr: np.ndarray) -> np.ndarray:
        return _downscale(hr, self.scale, self.round_lr)

    def _read_again(self, index: int) -> tuple[np.ndarray | None, np.ndarray]:
        path = self.paths[index]
        try:
            lr, hr = self._decode(path)
        except ValueError as error:
            reason = str(error).removesuffix("; remove or replace it")
            raise ImageReadError(f"{reason}; it is not what it was when the run began, put it back") from None
        if hr.shape[:2] != self.sizes[index] or _checksum(lr, hr) != self.checksums[index]:
            which = path if lr is None else f"{path} or its LR partner"
            raise ImageReadError(
                f"{which} has changed; expected images not to change while a run reads them, put it back"
            )
        return lr, hr

    def _decode(self, path: Path) -> tuple[np.ndarray | None, np.ndarray]:
        """LR float32 (h,w,3) in [-1,1] where it has a file of its own, and HR uint8 (H,W,3), both cropped."""
        whole = read_rgb(path)
        hr = _crop(whole, self.multiple, name=str(path))
        if self._partners is None:
            return None, hr
        lr = read_rgb(self._partners[path])
        height, width = (x // self.scale for x in whole.shape[:2])
        if lr.shape[:2] != (height, width):
            raise ValueError(
                f"{self._partners[path]}, LR partner of {path}, is {lr.shape[0]}x{lr.shape[1]}; "
                f"expected {height}x{width} at scale={self.scale}, replace one of them"
            )
        return _LEVELS[lr[: hr.shape[0] // self.scale, : hr.shape[1] // self.scale]], hr


class PatchDataset(Dataset):
    """Random patches of pairs: `patches[epoch, index]` -> lr (3,patch/scale,patch/scale), hr (3,patch,patch) in [-1,1].

    patch: HR pixels, a multiple of scale, aligned to it; None for whole images. LR is cut from the whole image's LR.
    augment: one of the eight flips and transpositions at random. index counts on beyond the number of images:
    `index % len(patches)` is the image, the whole index with (seed, epoch) fixes the random choices.

    skip_small: leave out images smaller than the patch; `used` lists the indices in pairs of those that stay.

    Raises ValueError where patch does not suit the scale, an image is smaller than it, or all are.
    """

    def __init__(
        self, pairs: PairedDataset, patch: int | None, augment: bool, seed: int, skip_small: bool = False
    ) -> None:
        scale = pairs.scale
        self.used = list(range(len(pairs)))
        if patch is not None:
            if patch < 1 or patch % scale:
                raise ValueError(f"patch={patch} is not divisible by scale={scale}; use {_nearest(patch, scale)}")
            self.used = [i for i in self.used if min(pairs.sizes[i]) >= patch]
            if len(self.used) < len(pairs) and not (skip_small and self.used):
                small = min(pairs.sizes, key=min)
                path = pairs.paths[pairs.sizes.index(small)]
                remedy = f"use patch={min(small)}" + (" or skip_small to leave such images out" if self.used else "")
                raise ValueError(
                    f"{path} is {small[0]}x{small[1]} after cropping, smaller than patch={patch} as are "
                    f"{len(pairs) - len(self.used)} of {len(pairs)} images; {remedy}"
                )
        self.pairs, self.patch, self.augment, self.seed = pairs, patch, augment, seed

    def __len__(self) -> int:
        return len(self.used)

    @property
    def draws_to_cover(self) -> int:
        """How often an epoch draws each image so that it sees about as many pixels as the images have."""
        if self.patch is None:
            return 1
        pixels = sum(height * width for height, width in (self.pairs.sizes[i] for i in self.used))
        return max(1, round(pixels / self.patch**2 / len(self)))

    def checksums(self) -> list[int]:
        """Of the pixels of every image in use, in their order: what patches are drawn from."""
        return [self.pairs.checksums[i] for i in self.used]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        random = np.random.default_rng([self.seed, epoch, index])
        image = self.used[index % len(self)]
        scale, size, start = self.pairs.scale, self.pairs.sizes[image], (0, 0)
        if self.patch is not None:
            start = tuple(int(random.integers((x - self.patch) // scale + 1)) * scale for x in size)
            size = (self.patch, self.patch)
        lr, hr = self.pairs.crop(image, start, size)
        if self.augment:
            across, down, turned = random.integers(2, size=3).tolist()
            flips = [-1] * across + [-2] * down
            lr, hr = lr.flip(flips), hr.flip(flips)
            if turned:
                lr, hr = lr.mT.contiguous(), hr.mT.contiguous()
        return lr, hr


def _check_multiple(scale: int, multiple: int) -> None:
    if multiple < 1 or multiple % scale:
        raise ValueError(f"multiple={multiple} is not divisible by scale={scale}; use {_nearest(multiple, scale)}")


def _nearest(value: int, scale: int) -> str:
    below = value // scale * scale
    return f"{below} or {below + scale}" if below > 0 else f"{scale}"


def _checksum(lr: np.ndarray | None, hr: np.ndarray) -> int:
    return zlib.crc32(hr, 0 if lr is None else zlib.crc32(np.ascontiguousarray(lr)))


def _crop(rgb: np.ndarray, multiple: int, name: str) -> np.ndarray:
    height, width = (x // multiple * multiple for x in rgb.shape[:2])
    if not height or not width:
        size = f"{rgb.shape[0]}x{rgb.shape[1]}"
        raise ValueError(f"{name} is {size}, smaller than multiple={multiple}; use a smaller multiple or remove it")
    return np.ascontiguousarray(rgb[:height, :width])


def _chw(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _downscale(rgb: np.ndarray, scale: int, round_lr: bool) -> np.ndarray:
    """HR uint8 (H,W,3) -> LR float32 (h,w,3) in [-1,1], computed in float64."""
    lr = imresize(rgb / 255, scale)
    if round_lr:
        lr = np.rint(lr.clip(0, 1) * 255) / 255
    return (lr * 2 - 1).astype(np.float32)
