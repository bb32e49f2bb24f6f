"""Patches of (LR, HR) pairs, at random or side by side.

Random choices depend on (seed, epoch, index) only, not on the number of workers or on interruptions.
"""

from itertools import product

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from .datasets import PairedDataset, nearest, to_tensors


class PatchDataset(Dataset):
    """Random patches of pairs: `patches[epoch, index]` -> lr (3,p/scale,p/scale), hr (3,p,p) in [-1,1].

    index may exceed the number of images: `index % len(patches)` is the image; (seed, epoch, index) fix the random
    choices. LR is a part of the whole image's LR.

    Args:
        patch: p in HR pixels, a multiple of scale; patches begin at multiples of scale. None: whole images.
        augment: apply one of the eight flips and transpositions at random.
        skip_small: leave out images smaller than the patch; `used` lists the indices in pairs of the others.
        tiles: cut non-overlapping patches from the top left instead, as in the code released for the TLW paper's
            Table II: index is a tile's number, remainders at the right and bottom are not used, and LR is made from the
            tile alone.

    Raises ValueError if patch is no multiple of scale, or an image (with skip_small, every image) is smaller than it.
    """

    def __init__(
        self,
        pairs: PairedDataset,
        patch: int | None,
        augment: bool,
        seed: int,
        skip_small: bool = False,
        tiles: bool = False,
    ) -> None:
        scale = pairs.scale
        self.used = list(range(len(pairs)))
        if patch is not None:
            if patch < 1 or patch % scale:
                raise ValueError(f"patch={patch} is not divisible by scale={scale}; use {nearest(patch, scale)}")
            self.used = [i for i in self.used if min(pairs.sizes[i]) >= patch]
            if len(self.used) < len(pairs) and not (skip_small and self.used):
                small = min(pairs.sizes, key=min)
                path = pairs.paths[pairs.sizes.index(small)]
                remedy = f"use --patch {min(small)}" + (
                    ", or --skip-small to leave such images out" if self.used else ""
                )
                raise ValueError(
                    f"{path} is {small[0]}x{small[1]} after cropping, smaller than patch={patch} as are "
                    f"{len(pairs) - len(self.used)} of {len(pairs)} images; {remedy}"
                )
        self.pairs, self.patch, self.augment, self.seed = pairs, patch, augment, seed
        self.tiles = self._cut(patch) if tiles and patch else None

    def _cut(self, patch: int) -> list[tuple[int, tuple[int, int]]]:
        """List the tiles, each an index in pairs and (top, left)."""
        found = []
        for i in self.used:
            rows, columns = (range(0, x - patch + 1, patch) for x in self.pairs.sizes[i])
            found += [(i, start) for start in product(rows, columns)]
        return found

    def __len__(self) -> int:
        return len(self.used) if self.tiles is None else len(self.tiles)

    def image(self, index: int) -> int:
        """The index in pairs of the image that `patches[epoch, index]` comes from."""
        return self.used[index % len(self)] if self.tiles is None else self.tiles[index % len(self)][0]

    @property
    def draws_to_cover(self) -> int:
        """Draws per image with which an epoch has about as many pixels as the images."""
        if self.patch is None or self.tiles is not None:
            return 1
        pixels = sum(height * width for height, width in (self.pairs.sizes[i] for i in self.used))
        return max(1, round(pixels / self.patch**2 / len(self)))

    def reorder(self, checksums: list[int]) -> bool:
        """Sort the images in use into the order of these checksums; return False if they are other images.

        So the same images give the same patches, whatever their files are called.
        """
        if sorted(checksums) != sorted(self.checksums()):
            return False
        places = sorted(self.used, key=lambda i: self.pairs.checksums[i])
        order = sorted(range(len(checksums)), key=checksums.__getitem__)
        self.used = [place for _, place in sorted(zip(order, places))]
        if self.tiles is not None and self.patch is not None:
            self.tiles = self._cut(self.patch)
        return True

    def checksums(self) -> list[int]:
        """The checksums of the images in use, in order."""
        return [self.pairs.checksums[i] for i in self.used]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        random = np.random.default_rng([self.seed, epoch, index])
        image = self.image(index)
        scale, size, start = self.pairs.scale, self.pairs.sizes[image], (0, 0)
        if self.tiles is not None:
            _, start = self.tiles[index % len(self)]
        elif self.patch is not None:
            top, left = (int(random.integers((x - self.patch) // scale + 1)) * scale for x in size)
            start = (top, left)
        if self.patch is not None:
            size = (self.patch, self.patch)
        # The fourth number makes this stream differ from the one above.
        degrading = np.random.default_rng([self.seed, epoch, index, 2]) if self.pairs.degradation else None
        lr, hr = self.pairs.crop(image, start, size, degrading, alone=self.tiles is not None)
        if self.augment:  # on arrays, which may have 8 bits, not on float32 tensors
            across, down, turned = random.integers(2, size=3).tolist()
            lr, hr = (x[:: -1 if down else 1, :: -1 if across else 1] for x in (lr, hr))
            if turned:
                lr, hr = lr.swapaxes(0, 1), hr.swapaxes(0, 1)
        return to_tensors(lr, hr)
