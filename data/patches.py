"""Random patches of pairs of images.

Every random choice is a pure function of (seed, epoch, index): worker counts and interruptions change nothing.
"""

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from .datasets import PairedDataset, nearest, to_tensors


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

    def __len__(self) -> int:
        return len(self.used)

    @property
    def draws_to_cover(self) -> int:
        """How often an epoch draws each image so that it sees about as many pixels as the images have."""
        if self.patch is None:
            return 1
        pixels = sum(height * width for height, width in (self.pairs.sizes[i] for i in self.used))
        return max(1, round(pixels / self.patch**2 / len(self)))

    def reorder(self, checksums: list[int]) -> bool:
        """Take the images in the order of these checksums, if they are the checksums of the images in use.

        So that the same images give the same draws wherever their files lie. Returns if they are.
        """
        if sorted(checksums) != sorted(self.checksums()):
            return False
        places = sorted(self.used, key=lambda i: self.pairs.checksums[i])
        order = sorted(range(len(checksums)), key=checksums.__getitem__)
        self.used = [place for _, place in sorted(zip(order, places))]
        return True

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
        # The fourth number keeps this stream apart from the one above.
        degrading = np.random.default_rng([self.seed, epoch, index, 2]) if self.pairs.degradation else None
        lr, hr = self.pairs.crop(image, start, size, degrading)
        if self.augment:  # before they are tensors: of 8 bits, not of 32
            across, down, turned = random.integers(2, size=3).tolist()
            lr, hr = (x[:: -1 if down else 1, :: -1 if across else 1] for x in (lr, hr))
            if turned:
                lr, hr = lr.swapaxes(0, 1), hr.swapaxes(0, 1)
        return to_tensors(lr, hr)
