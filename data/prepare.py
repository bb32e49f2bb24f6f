"""Check a set of images, and cut it into sub-images that are quick to read.

python -m data.prepare --input DIR                                              a report, nothing is written
python -m data.prepare --input DIR --output DIR --size 480 --step 240           sub-images, and the report
python -m data.prepare --input DIR --output NEW/HR --lr-output NEW/LR --scale 4 --size 0    whole images and their LR
"""

import argparse
import os
import shlex
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .degradations import DEGRADATIONS
from .images import checksum, passed_over, read_rgb
from .imresize import imresize
from .partners import find_lr_among_hr, rooted, unique_names
from .progress import show_progress

SHOWN = 5  # lines of each kind of finding


class Found(NamedTuple):
    """The findings about an image: why it cannot be read, or its size, checksum and sub-images."""

    error: str | None
    size: tuple[int, int] = (0, 0)
    checksum: int = 0
    parts: int = 0


class Parser(argparse.ArgumentParser):
    """argparse with errors on one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    about, examples = str(__doc__).split("\n\n", 1)
    parser = Parser(
        prog="data.prepare",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="DIR", help="folders of images")
    parser.add_argument(
        "--output", metavar="DIR", help="a new folder for the sub-images; without it nothing is written"
    )
    parser.add_argument(
        "--size", type=int, default=480, metavar="N", help="of a sub-image; 0: whole images (%(default)s)"
    )
    parser.add_argument("--step", type=int, metavar="N", help="pixels from one to the next (half of --size)")
    parser.add_argument(
        "--scale",
        type=int,
        choices=(1, 2, 3, 4, 8),
        metavar="N",
        help="sizes and places are multiples of it (12, so of 2, 3, 4)",
    )
    parser.add_argument("--lr-output", metavar="DIR", help="a new folder for the LR of the sub-images; needs --scale")
    parser.add_argument("--degradation", choices=DEGRADATIONS, default="bicubic", help="that makes LR (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the degradation (%(default)s)")
    args = parser.parse_args(argv)
    try:
        _check(args)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    return args


def _check(args: argparse.Namespace) -> None:
    args.multiple = args.scale or 12
    args.step = args.size // 2 // args.multiple * args.multiple if args.step is None else args.step
    for name, least in (("size", 0), ("step", 0 if args.size == 0 else args.multiple)):
        value = getattr(args, name)
        if not least <= value <= 65536 or value % args.multiple:
            near = max(value // args.multiple * args.multiple, args.multiple)
            raise ValueError(f"--{name} {value}: expected a multiple of {args.multiple}, such as {near}")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed {args.seed}: expected a number from 0 to below 2^32")
    if args.lr_output is not None and (args.scale is None or args.output is None):
        raise ValueError(f"--lr-output {args.lr_output}: expected --scale and --output beside it")
    if args.degradation != "bicubic" and args.lr_output is None:
        raise ValueError(f"--degradation {args.degradation}: expected --lr-output beside it, for the LR images")
    outputs = [Path(x) for x in (args.output, args.lr_output) if x is not None]
    for path in outputs:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path} is there already; expected a new folder, name another or move it away")
        above = [path.absolute(), *path.absolute().parents]
        if any(Path(folder).absolute() in above for folder in args.input):
            raise ValueError(f"{path} is within --input, where it would be taken for more images; name another folder")
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"--lr-output {args.lr_output}: expected another folder than --output")


def starts(length: int, size: int, step: int, multiple: int) -> list[int]:
    """Where sub-images begin along one side: every step, and where the last one ends at the image's end."""
    found = list(range(0, length - size + 1, step)) or [0]
    last = max(0, length - size) // multiple * multiple
    return found + [last] * (last > found[-1])


def cut(rgb: np.ndarray, label: str, args: argparse.Namespace) -> int:
    """Write the sub-images of an image, and their LR if it is asked for; returns their number."""
    multiple, scale = args.multiple, args.scale
    height, width = (x // multiple * multiple for x in rgb.shape[:2])
    if not height or not width:
        return 0
    rgb = rgb[:height, :width]
    size = (min(args.size or height, height), min(args.size or width, width))
    corners = [
        (top, left)
        for top in starts(height, size[0], args.step or height, multiple)
        for left in starts(width, size[1], args.step or width, multiple)
    ]
    degrade = DEGRADATIONS[args.degradation]
    small = imresize(rgb, scale) if args.lr_output and degrade is None else rgb
    for number, (top, left) in enumerate(corners, 1):
        name = f"{label}_s{number:03d}" if args.size else label
        save(rgb[top : top + size[0], left : left + size[1]], Path(args.output, f"{name}.png"))
        if args.lr_output is None:
            continue
        if degrade is None:
            window = tuple(slice(x // scale, (x + length) // scale) for x, length in zip((top, left), size))
            lr = np.rint(small[window]).clip(0, 255).astype(np.uint8)
        else:
            random = np.random.default_rng([args.seed, zlib.crc32(name.encode(errors="surrogateescape"))])
            lr = degrade(rgb, (top, left), size, scale, random)
        save(lr, Path(args.lr_output, f"{name}x{scale}.png"))
    return len(corners)


def save(rgb: np.ndarray, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    try:
        Image.fromarray(np.ascontiguousarray(rgb)).save(aside, "PNG", compress_level=3)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def report(found: dict[Path, Found], labels: dict[Path, str], args: argparse.Namespace) -> str:
    """The findings about the images, as text."""
    good = {path: f for path, f in found.items() if f.error is None}
    lines = [("images", f"{len(found)}, {sum(path.stat().st_size for path in found) / 1e6:.1f} MB")]
    if good:
        sizes = sorted((f.size for f in good.values()), key=lambda size: size[0] * size[1])
        pixels = sum(height * width for height, width in sizes)
        spread = [f"{height}x{width}" for height, width in (sizes[0], sizes[len(sizes) // 2], sizes[-1])]
        lines.append(("sizes", f"smallest {spread[0]}, median {spread[1]}, largest {spread[2]} (height x width)"))
        lines.append(("decoded", f"{3 * pixels / 1e9:.2f} GB, {pixels / 1e6:.1f} megapixels"))
    lines += _some("damaged", [f.error for f in found.values() if f.error])
    same = defaultdict(list)
    for path, f in good.items():
        same[f.checksum, f.size].append(str(path))
    lines += _some("duplicates", [" = ".join(paths) for paths in same.values() if len(paths) > 1])
    stems = Counter(path.stem for path in found)
    twice = [stem for stem, count in stems.items() if count > 1]
    lines += _some("names", [f"{stem} stands for {stems[stem]} files" for stem in twice])
    both = find_lr_among_hr({path: f.size for path, f in good.items()})
    lines += _some("LR among HR", [f"{both}: name the folder of HR alone"] * bool(both))
    lines += _some("passed over", [line.removeprefix("passed over ") for line in passed_over(args.input)])
    if args.size:
        small = [f"{path} ({f.size[0]}x{f.size[1]})" for path, f in good.items() if min(f.size) < args.size]
        lines += _some(f"below {args.size}", small)
    if args.output is not None:
        parts = sum(f.parts for f in good.values())
        what = f"sub-images of up to {args.size}x{args.size}, every {args.step}" if args.size else "whole images"
        lines.append(("written", f"{parts} {what}, to {args.output}"))
    if args.lr_output is not None:
        lines.append(("", f"their LR, 1/{args.scale} by {args.degradation}, to {args.lr_output}"))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:{width}}{text}" for name, text in lines)


def _some(name: str, findings: list[str]) -> list[tuple[str, str]]:
    """Lines for the report: how many findings, and the first of them."""
    if not findings:
        return [(name, "none")] if name in ("damaged", "duplicates") else []
    more = [f"and {len(findings) - SHOWN} more"] * (len(findings) > SHOWN)
    return [(name, str(len(findings))), *(("", line) for line in findings[:SHOWN] + more)]


def next_command(args: argparse.Namespace) -> str:
    """The command that trains on the images."""
    script = Path(__file__).resolve().parents[1] / "train.py"
    here = not script.exists() or os.path.realpath("train.py") == str(script)
    words = ["train.py" if here else str(script), "--trainpath", *([args.output] if args.output else args.input)]
    words += ["--lrpath", args.lr_output] if args.lr_output else []
    words += ["--scale", str(args.scale)] if args.scale in (2, 3, 4, 8) else []
    patch = min(args.size, 192) if args.output and args.size else 192
    return f"python {shlex.join(words)} --patch {patch} --batchsize 16 --valpath DIR"


def main(argv: Sequence[str] | None = None) -> None:
    streams: Any = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")  # odd file names
    args = parse(argv)
    try:
        files = rooted(args.input)
    except ValueError as error:
        Parser(prog="data.prepare").error(str(error))
    labels = {path: name.lstrip("/") for path, name in unique_names(files).items()}

    def look(path: Path) -> Found:
        try:
            rgb = read_rgb(path)
        except ValueError as error:
            return Found(str(error).removesuffix("; remove or replace it"))
        parts = cut(rgb, labels[path], args) if args.output else 0
        return Found(None, rgb.shape[:2], checksum(rgb), parts)

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    label = "cutting images" if args.output else "reading images"
    try:
        found = dict(zip(files, show_progress(pool.map(look, files), label, len(files))))
    except OSError as error:
        print(f"data.prepare: error: {error.filename or args.output}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nstopped; what was written is whole, but not all is there", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        pool.shutdown(cancel_futures=True)
    print(report(found, labels, args))
    if all(f.error for f in found.values()):
        raise SystemExit(1)
    print(f"next: {next_command(args)}")
    if any(f.error for f in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
