"""Over a thousand damaged and odd files: each is read to what it holds or refused in one line, soon, in little memory.

What is promised where bits are flipped or zeros written over a part:

- PNG, whose parts all have check sums: refused, or read to the very same pixels.
- TIFF, JPEG, WebP, BMP, PPM, GIF, JPEG 2000, AVIF: nothing in them covers the whole. Refused, or an image of three channels whose pixels may
  differ; no reader can tell.

Cut short, in every format: refused, or the same pixels where only the end is missing that holds none.
More files: DAMAGED_IMAGES=20000 python -m pytest tests/data/test_damaged_images.py
"""

import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.images import read_rgb
from data.photographs import photographs

FILES = int(os.environ.get("DAMAGED_IMAGES", 1200))
PART = 12  # tests that share them
SECONDS, MEMORY = 5, 1 << 30  # of one file; the time is the process's own, for the machine may be busy
MAGICS = [
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    b"BM",
    b"RIFF\xff\xff\0\0WEBPVP8 ",
    b"RIFF\xff\0\0\0WEBPVP8X",
    b"RIFF\xff\0\0\0WEBPVP8L",
    b"II*\0",
    b"MM\0*",
    b"II+\0\x08\0\0\0",
    b"GIF89a",
    b"P6 40 30 255\n",
    b"P2 40 30 255\n",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
    b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
]


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return read_rgb(photographs("skimage:coffee")[0])[120:152, 200:240]


def written(rgb: np.ndarray, kind: str, **settings) -> bytes:
    file = BytesIO()
    Image.fromarray(rgb).save(file, kind, **settings)
    return file.getvalue()


def deep_tiff(rgb: np.ndarray, **settings) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, rgb * np.uint16(257), photometric="rgb", **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(photograph) -> dict[str, bytes]:
    """Undamaged files; a name with a * stands for a format where damage cannot pass."""
    turned = Image.Exif()
    turned[274] = 6
    more = [Image.fromarray(255 - photograph)]
    return {
        "png*": written(photograph, "PNG"),
        "palette.png*": written(photograph[..., 0], "PNG", exif=turned),
        "animated.png*": written(photograph, "PNG", save_all=True, append_images=more),
        "jpg": written(photograph, "JPEG", exif=turned),
        "progressive.jpg": written(photograph, "JPEG", progressive=True),
        "bmp": written(photograph, "BMP"),
        "webp": written(photograph, "WEBP"),
        "lossless.webp": written(photograph, "WEBP", lossless=True),
        "animated.webp": written(photograph, "WEBP", save_all=True, append_images=more),
        "tif": written(photograph, "TIFF"),
        "lzw.tif": written(photograph, "TIFF", compression="tiff_lzw"),
        "deflate.tif": written(photograph, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": written(photograph, "TIFF", compression="jpeg"),
        "deep.tif": deep_tiff(photograph),
        "deep_deflate.tif": deep_tiff(photograph, compression="zlib"),
        "deep_lzw.tif": deep_tiff(photograph, compression="lzw", predictor=True),
        "ppm": written(photograph, "PPM"),
        "pgm": written(photograph[..., 0], "PPM"),
        "gif": written(photograph[..., 0], "GIF"),
        "animated.gif": written(photograph[..., 0], "GIF", save_all=True, append_images=more),
        "jp2": written(photograph, "JPEG2000"),
        "lossy.jp2": written(photograph, "JPEG2000", quality_layers=[20]),
        "avif": written(photograph, "AVIF"),
    }


@contextmanager
def bounded():
    """At most SECONDS of computing and MEMORY more than now; a file that asks for more memory gets none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    began = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - began < SECONDS


def read_or_reason(path: Path) -> np.ndarray | str:
    """The image, or the one line that refuses it."""
    try:
        with bounded():
            rgb = read_rgb(path)
    except ValueError as error:
        line = str(error)
        assert line.startswith(f"cannot read image {path}: ") and line.endswith("; remove or replace it")
        assert len(line.splitlines()) == 1 and len(line) < 500, line
        assert "llocate" not in line and "MemoryError" not in line, line
        return line
    assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    return rgb


def damaged(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """data cut short, with a few bits flipped, with zeros over a part, or with another file's bytes there."""
    values = np.frombuffer(data, np.uint8).copy()
    start = int(random.integers(len(values)))
    if kind == "cut":
        return data[:start]
    if kind == "flipped":
        at = random.integers(len(values), size=random.integers(1, 4))
        values[at] ^= (1 << random.integers(8, size=len(at))).astype(np.uint8)
    elif kind == "zeros":
        values[start : start + random.integers(1, 400)] = 0
    else:
        part = values[start : start + random.integers(1, 200)]
        part[:] = random.integers(256, size=len(part))
    return values.tobytes()


@pytest.mark.parametrize("part", range(PART))
def test_damage(tmp_path, whole, part):
    path, seen = tmp_path / "a.png", set()
    expected = {}
    for name, data in whole.items():
        path.write_bytes(data)
        expected[name] = read_rgb(path)
    for number in range(part, FILES, PART):
        random = np.random.default_rng([7, number])
        name = list(whole)[number // PART % len(whole)]
        kind = ("cut", "flipped", "zeros", "random")[random.integers(4)]
        data = damaged(random, whole[name], kind)
        path.write_bytes(data)
        found = read_or_reason(path)
        refused = isinstance(found, str)
        seen.add((kind, refused))
        if kind == "cut":
            assert refused or np.array_equal(found, expected[name]), (number, name)
            assert refused or len(data) > len(whole[name]) // 3, (number, name)
        elif name.endswith("*"):
            assert refused or np.array_equal(found, expected[name]), (number, name, kind)
    assert {("cut", True), ("flipped", True), ("zeros", True), ("random", True), ("flipped", False)} <= seen


def test_every_flipped_byte_of_a_small_png(tmp_path, photograph):
    """All positions, not random ones: no change of pixels passes the check sums."""
    rgb = photograph[:8, :8]
    data = written(rgb, "PNG")
    path = tmp_path / "a.png"
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        found = read_or_reason(path)
        assert isinstance(found, str) or np.array_equal(found, rgb), position


@pytest.mark.parametrize("magic", MAGICS)
def test_random_bytes_with_a_magic(tmp_path, magic):
    path = tmp_path / "a.png"
    for number in range(max(8, FILES // 100)):
        random = np.random.default_rng([8, number])
        path.write_bytes(magic + random.bytes(int(random.integers(3000))))
        # BMP has no more of a magic than two letters: what follows may say a size and give it pixels.
        assert isinstance(read_or_reason(path), str) or magic == b"BM", number


def header(kind: str, width: int, height: int) -> bytes:
    """A small file that says it holds width x height pixels."""
    dot = np.zeros((8, 8, 3), np.uint8)
    if kind == "png":
        data = bytearray(written(dot, "PNG"))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif kind == "jpg":
        data = bytearray(written(dot, "JPEG"))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "bmp":
        data = bytearray(written(dot, "BMP"))
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "webp":
        data = bytearray(written(dot, "WEBP", save_all=True, append_images=[Image.fromarray(dot + 9)]))
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == "ppm":
        data = b"P6 %d %d 255\n" % (width, height) + dot.tobytes()
    elif kind == "gif":
        data = bytearray(written(dot, "GIF"))
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "jp2":
        data = bytearray(written(dot, "JPEG2000"))
        box, marker = data.index(b"ihdr") + 4, data.index(b"\xff\x51") + 6
        data[box : box + 8] = struct.pack(">II", height, width)
        data[marker : marker + 8] = struct.pack(">II", width, height)
    elif kind == "avif":
        data = bytearray(written(dot, "AVIF"))
        box = data.index(b"ispe") + 8
        data[box : box + 8] = struct.pack(">II", width, height)
    else:
        data = deep_tiff(dot) if kind == "deep.tif" else written(dot, "TIFF")
        with tifffile.TiffFile(BytesIO(data)) as tiff:
            tags = [tiff.pages[0].tags[name] for name in ("ImageWidth", "ImageLength")]
            places = [("<H" if tag.dtype == 3 else "<I", tag.valueoffset) for tag in tags]
        data = bytearray(data)
        for (form, offset), value in zip(places, (width, height)):
            struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize("size", [(30_000, 30_000), (9_460, 9_460), (65_000, 1_400)])
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "webp", "tif", "deep.tif", "ppm", "gif", "jp2", "avif"])
def test_bombs_are_refused_by_their_header(tmp_path, kind, size):
    """Far below the memory of so many pixels, so before anything is decoded."""
    path = tmp_path / "a.png"
    path.write_bytes(header(kind, *size))
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = read_or_reason(path)
    assert isinstance(line, str) and ("decompression bomb" in line or kind == "avif")  # libavif refuses it before us
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path):
    """A megabyte of them would take hours."""
    data = written(np.full((1000, 1000, 3), 99, np.uint8), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:-2] + last * 5000 + data[-2:])
    assert "scans of 1000x1000 pixels, as in a decompression bomb" in read_or_reason(path)
    path.write_bytes(data)
    assert read_or_reason(path).shape == (1000, 1000, 3)


def test_what_is_no_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(1 << 40)
    for name, words in [
        ("pipe", "a pipe or a device"),
        ("zero", "a pipe or a device"),
        ("loop", "symbolic links"),
        ("huge", f"{1 << 40} bytes are more than"),
    ]:
        assert words in read_or_reason(tmp_path / f"{name}.png")


def png(header: tuple, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file by its specification."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *header)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def scanlines(samples: np.ndarray) -> tuple[bytes, bytes]:
    return b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in samples))


@pytest.mark.parametrize("seed", range(5))
def test_odd_but_undamaged_files(tmp_path, photograph, seed):
    """Against the numbers that were written, by formula: nothing of Pillow's is between the two."""
    random = np.random.default_rng(seed)
    path = tmp_path / "odd.png"
    height, width = (int(x) for x in random.integers(1, 20, size=2))

    def check(data: bytes, expected: np.ndarray, slack: int = 0):
        path.write_bytes(data)
        found = read_or_reason(path)
        assert not isinstance(found, str) and found.shape == expected.shape, found
        assert np.abs(found.astype(int) - expected).max() <= slack

    colours = random.integers(256, size=(200, 3), dtype=np.uint8)
    indices = random.integers(200, size=(height, width), dtype=np.uint8)
    chunks = (b"PLTE", colours.tobytes()), (b"tRNS", random.bytes(150)), scanlines(indices)
    check(png((width, height, 8, 3, 0, 0, 0), *chunks), colours[indices])

    deep = random.integers(65536, size=(height, width, 3), dtype=np.uint16)
    check(png((width, height, 16, 2, 0, 0, 0), scanlines(deep.astype(">u2"))), deep >> 8)
    grey = np.rint(deep[..., :1] / 257).repeat(3, axis=2)
    check(png((width, height, 16, 0, 0, 0, 0), scanlines(deep[..., 0].astype(">u2"))), grey)
    file = BytesIO()
    tifffile.imwrite(file, deep, photometric="rgb")
    check(file.getvalue(), np.rint(deep / 257))

    inks = random.integers(256, size=(height, width, 4), dtype=np.uint8)
    file = BytesIO()
    tifffile.imwrite(file, inks, photometric="separated", planarconfig="contig")
    paper = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    check(file.getvalue(), np.rint(paper), slack=1)
    smooth = np.full((16, 16, 4), inks[0, 0])
    file = BytesIO()
    Image.fromarray(smooth, "CMYK").save(file, "JPEG", quality=100)
    check(file.getvalue(), np.rint(np.full((16, 16, 3), paper[0, 0])), slack=4)

    upright = photograph[: height + 1, :width]
    # What EXIF's orientations say of where row 0 and column 0 of the file are.
    stored = [
        upright,
        upright[:, ::-1],
        upright[::-1, ::-1],
        upright[::-1],
        upright.transpose(1, 0, 2),
        np.rot90(upright, 1),
        upright[::-1, ::-1].transpose(1, 0, 2),
        np.rot90(upright, -1),
    ]
    for orientation, pixels in enumerate(stored, 1):
        exif = Image.Exif()
        exif[274] = orientation
        for kind, settings in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            check(written(np.ascontiguousarray(pixels), kind, exif=exif, **settings), upright)

    frames = [random.integers(256, size=(height, width, 3), dtype=np.uint8) for _ in range(3)]
    for kind, settings in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        more = [Image.fromarray(frame) for frame in frames[1:]]
        check(written(frames[0], kind, save_all=True, append_images=more, **settings), frames[0])

    dot = random.integers(256, size=(1, 1, 3), dtype=np.uint8)
    for kind in ("PNG", "BMP", "TIFF"):
        check(written(dot, kind), dot)


def test_other_formats_under_our_names_are_refused(tmp_path, photograph):
    path = tmp_path / "a.png"
    others = [written(photograph, kind) for kind in ("EPS", "ICO", "TGA", "PDF")]
    for data in (*others, b"\0" * 5000, b"<svg/>", b"PK\3\4"):
        path.write_bytes(data)
        assert isinstance(read_or_reason(path), str)
    for kind in ("PNG", "BMP", "TIFF"):
        path = tmp_path / "a.jpg"
        path.write_bytes(written(photograph, kind))
        assert np.array_equal(read_or_reason(path), photograph)


SPEAKING = """
import sys
from pathlib import Path
from data.images import read_rgb
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_rgb(path)
    except ValueError:
        pass
"""


def test_nothing_is_said_beside_the_reason(tmp_path, whole):
    """Pillow's warnings, tifffile's log and libtiff's lines stay inside."""
    for number, (name, data) in enumerate(whole.items()):
        random = np.random.default_rng([9, number])
        for again, kind in enumerate(("cut", "flipped", "zeros", "random")):
            (tmp_path / f"{number}_{again}.png").write_bytes(damaged(random, data, kind))
    (tmp_path / "bomb.png").write_bytes(header("png", 9_460, 9_460))
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", SPEAKING, tmp_path],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0 and done.stdout == "" and done.stderr == ""
