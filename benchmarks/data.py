"""Time a patch of a data set larger than memory: decode its image, or map it from the disk cache.

    python -m benchmarks.data --folder /tmp/images --images 60

If --folder does not exist, images are made there: PNGs of DIV2K's size, of an enlarged photograph of scikit-image with
noise, which makes them as slow to decode as photographs.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from data import ImageCache, PairedDataset, PatchDataset, datasets, read_rgb
from data.photographs import photographs
from training.malloc import retain_freed_memory

from .machine import title

SIZE = (2040, 1356)  # width and height of most images of DIV2K


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder of the images, made if it does not exist")
    parser.add_argument("--images", type=int, default=20, help="number of images to make (%(default)s)")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--patches", type=int, nargs="+", default=[96, 192, 256], help="HR pixels (%(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="draws from the cache per patch size (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def make_images(folder: Path, count: int, size: tuple[int, int] = SIZE) -> None:
    """Write PNGs that are about as large as DIV2K's files."""
    photograph = Image.fromarray(read_rgb(photographs("skimage:hubble")[0])).resize(size, Image.Resampling.LANCZOS)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noise = np.random.default_rng(number).integers(-6, 7, (*size[::-1], 3))
        Image.fromarray((np.asarray(photograph) + noise).clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:04d}.png"
        )


def read_set(folder: Path, scale: int, cache: ImageCache | None) -> tuple[PairedDataset, float, int]:
    """Read the pairs, none kept in memory; return them, the seconds and the number of images decoded."""
    decoded = []
    with mock.patch.object(datasets, "read_rgb", lambda path: decoded.append(path) or read_rgb(path)):
        began = time.perf_counter()
        pairs = PairedDataset(folder, scale, scale, cache_bytes=0, cache=cache)
        return pairs, time.perf_counter() - began, len(decoded)


def draw_times(pairs: PairedDataset, patch: int, draws: int, cold: ImageCache | None = None) -> str:
    """Time draws in milliseconds: the median wall time and CPU time, and the 95th percentile of wall time.

    cold: the cache; the image's pages in memory are dropped before each draw.
    """
    patches, taken, computed = PatchDataset(pairs, patch, augment=True, seed=0), [], []
    for draw in range(draws):
        image = draw * 7919 % len(patches)  # as in training, no image comes again soon
        if cold is not None:
            drop_pages(cold, pairs.paths[image])
        began, began_computing = time.perf_counter(), time.process_time()
        patches[draw, image]
        taken.append(1000 * (time.perf_counter() - began))
        computed.append(1000 * (time.process_time() - began_computing))
    taken.sort()
    median, most = taken[draws // 2], taken[draws * 95 // 100]
    return f"{median:.2f} ms ({sorted(computed)[draws // 2]:.2f} of CPU time), 95 % below {most:.2f}"


def drop_pages(cache: ImageCache, path: Path) -> None:
    """Drop a cached image from the system's page cache."""
    with open(cache.file_of(path, path.stat()), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    retain_freed_memory()  # as train.py does
    if not args.folder.is_dir():
        make_images(args.folder, args.images)
    place = Path(tempfile.mkdtemp(prefix="decoded_", dir=args.folder.absolute().parent))
    try:
        print(title(torch.device("cpu")))
        plain, seconds, count = read_set(args.folder, args.scale, None)
        print(f"{len(plain)} images; start without a cache: {seconds:.1f} s, {count} decoded")
        for start in ("first", "second"):
            cache = ImageCache(place, 1 << 40, beyond=0)
            stored, seconds, count = read_set(args.folder, args.scale, cache)
            size = sum(file.stat().st_size for file in place.rglob("*.rgb")) / 1e6
            print(f"{start} start with a cache of {size:.0f} MB: {seconds:.2f} s, {count} decoded")
        for patch in args.patches:
            print(f"patch {patch}, x{args.scale}")
            print(f"  decoded for the draw  {draw_times(plain, patch, 10)}")
            draw_times(stored, patch, len(stored))
            print(f"  from the cache        {draw_times(stored, patch, args.draws)}")
            print(f"  and not in memory     {draw_times(stored, patch, args.draws, cache)}")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
