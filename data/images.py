"""Find image files and read them as 8-bit RGB, with one-line errors for unreadable files."""

import ctypes
import logging
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from .photographs import PREFIX, photographs

T = TypeVar("T")

# Pillow may open these only: its readers of other formats may start programs (EPS starts Ghostscript).
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
}
# Pillow's wheels have both, some other builds do not.
FORMATS |= {"JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx")} if features.check("jpg_2000") else {}
FORMATS |= {"AVIF": (".avif",)} if features.check("avif") else {}
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
_NAMES = "PNG, JPEG, BMP, WebP, TIFF, PPM, GIF, JPEG 2000 or AVIF"
_JPEG_MAGIC, _JPEG_SCAN = b"\xff\xd8", b"\xff\xda"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Pillow's own limit for decompression bombs; training images are two orders of magnitude smaller.
_MAX_PIXELS = 89_478_485
# More than _MAX_PIXELS of four 16-bit samples take.
MAX_BYTES = 1 << 30
# A progressive JPEG can decode all pixels again every few bytes: the limit of pixels times scans limits the time.
_MAX_SCANNED = 20 * _MAX_PIXELS
ORIENTATION = 274  # the EXIF tag, and TIFF's

# These warnings are about odd metadata, not pixels. They are filtered for the whole process, because files are read in
# threads, which share the filters.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def _silence_libtiff() -> None:
    try:
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler  # in the libtiff that Pillow links
    except (OSError, AttributeError):  # another build of Pillow: libtiff keeps writing to stderr
        return
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    set_handler(None)


# libtiff writes to stderr what Pillow raises anyway.
_silence_libtiff()


def list_images(folders: str | Path | Iterable[str | Path]) -> list[Path]:
    """List all image files (see SUFFIXES) below the folders; links are followed, hidden names skipped.

    Files are sorted by path within a folder, folders keep the given order, and no path comes twice. The folder
    "skimage:NAME,NAME" stands for these photographs of scikit-image.
    Raises ValueError if a folder is missing, is a file, holds no image, or cannot be listed.
    """
    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    if not folders:
        raise ValueError("no folder given; expected at least one folder of images, name one")
    found: dict[Path, None] = {}
    for name in folders:
        if str(name).startswith(PREFIX):
            found.update(dict.fromkeys(photographs(str(name))))
            continue
        if name == "":  # Path("") is the working folder
            raise ValueError("the name of a folder is empty; expected a folder of images, name one")
        folder = Path(name)
        # For too long a name os.path's tests return False, Path's raise.
        if os.path.isfile(folder):
            raise ValueError(f"{folder} is a file; expected a folder of images, use {folder.parent}")
        if not os.path.isdir(folder):
            raise ValueError(f"folder {folder} does not exist; expected a folder of images, check the path")
        images = sorted(path for path in walk(folder) if path.suffix.lower() in SUFFIXES)
        if not images:
            others = "".join(f"; {line}" for line in passed_over(folder))
            raise ValueError(f"no images in {folder}; expected {_NAMES} files, check the path{others}")
        found.update(dict.fromkeys(images))
    return list(found)


def passed_over(folders: str | Path | Iterable[str | Path]) -> list[str]:
    """A line for each folder with files that `list_images` leaves out, with their counts by suffix."""
    lines = []
    for folder in [folders] if isinstance(folders, str | Path) else folders:
        files = [] if str(folder).startswith(PREFIX) else walk(Path(folder))
        counts = Counter(path.suffix.lower() or "no suffix" for path in files)
        others = [f"{count} {suffix}" for suffix, count in counts.most_common() if suffix not in SUFFIXES]
        if others:
            more = f" and {len(others) - 8} more kinds" if len(others) > 8 else ""
            lines.append(f"passed over in {folder}: {', '.join(others[:8])}{more}")
    return lines


def walk(folder: Path) -> Iterable[Path]:
    """Yield the files below a folder but hidden ones, unsorted. Raises ValueError if one cannot be listed."""

    def refuse(error: OSError):
        raise ValueError(f"cannot list folder {error.filename}: {error.strerror}; make it readable or remove it")

    seen = set()
    for root, below, names in os.walk(folder, followlinks=True, onerror=refuse):
        # Links may form cycles, so each real folder is entered only once.
        real = os.path.realpath(root)
        below[:] = sorted(name for name in below if not name.startswith(".")) if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            if not name.startswith("."):
                yield Path(root, name)


def read_rgb(path: str | Path) -> np.ndarray:
    """Read an image file, or its first frame, as uint8 RGB (H,W,3), upright by its EXIF orientation.

    Grey becomes three equal channels, alpha is dropped (the colour under it stays), palettes and CMYK are converted.
    16-bit samples v become round(v / 257); 16-bit colour PNG and JPEG 2000 get Pillow's v >> 8, as in OpenCV.

    Raises ValueError("cannot read image <path>: <reason>; remove or replace it") for missing, empty, truncated or
    damaged files, other samples such as floats, decompression bombs, pipes and devices.
    """
    return read_with(_decode, path)


def to_grey(rgb: np.ndarray) -> np.ndarray:
    """Convert uint8 RGB (H,W,3) to luminance (H,W,1) in [0,255], ITU-R BT.601 as in Pillow and OpenCV."""
    weights = np.array([19595, 38470, 7471], np.uint32)  # of 2^16
    return ((rgb @ weights + 0x8000) >> 16).astype(np.uint8)[..., None]


class GreyImage:
    """A grey view (H,W,1) of an RGB image (H,W,3) that converts only the parts that are indexed."""

    def __init__(self, rgb: np.ndarray) -> None:
        self.rgb, self.shape = rgb, (*rgb.shape[:2], 1)

    def __getitem__(self, window: tuple) -> np.ndarray:
        return to_grey(self.rgb[window])


def read_with(decode: Callable[[bytes], T], path: str | Path) -> T:
    """Return decode(the file's bytes); any exception becomes the ValueError that `read_rgb` documents."""
    try:
        return decode(_contents(Path(path)))
    except UnidentifiedImageError:
        reason = f"not a {_NAMES} image, or damaged"
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError on damaged files
        reason = str(error) or type(error).__name__
    raise ValueError(f"cannot read image {path}: {' '.join(reason.split())}; remove or replace it")


def _contents(path: Path) -> bytes:
    size = path.stat().st_size
    if not (path.is_file() or path.is_dir()):  # reading a pipe or device may block or never end
        raise ValueError("a pipe or a device, not a file")
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are more than {MAX_BYTES}")
    return path.read_bytes()


def _decode(data: bytes) -> np.ndarray:
    inverted = False
    image = None
    if data.startswith(TIFF_MAGIC):
        from .tiff import inspect_tiff  # a slow import for a rare format

        image, inverted = inspect_tiff(data)
    if image is None:
        image = open_image(data)
    deep = image.format == "PPM"  # its mode "I" is 16-bit grey, scaled to the full range
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I" and deep:
        grey = np.asarray(image).astype(np.uint16)
        return np.repeat(to_8_bits(65535 - grey if inverted else grey)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit samples; expected 8 or 16 bits")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow converts a transparent palette to RGB only with a warning
    return np.array(image.convert("RGB"))


def open_image(data: bytes) -> Image.Image:
    """Open the image in a file's bytes; its size and checksums are checked, its pixels not yet decoded.

    Raises ValueError for empty files and decompression bombs, Pillow's errors for damaged files and other formats.
    """
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X":  # Pillow allocates all its pixels on opening
        check_size(*(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)))
    image = Image.open(BytesIO(data), formats=tuple(FORMATS))
    check_size(*image.size)
    if data.startswith(_JPEG_MAGIC):
        scans = data.count(_JPEG_SCAN)
        if scans * image.width * image.height > _MAX_SCANNED:
            raise ValueError(f"{scans} scans of {image.width}x{image.height} pixels, as in a decompression bomb")
    if image.format == "PNG":
        # Decoding does not check the checksums; verify() does, and leaves the image unusable.
        image.verify()
        image = Image.open(BytesIO(data), formats=tuple(FORMATS))
    return image


def check_size(width: int, height: int) -> None:
    """Raise ValueError if an image has so many pixels that it may be a decompression bomb."""
    if width * height > _MAX_PIXELS:
        raise ValueError(f"{width}x{height} are more than {_MAX_PIXELS} pixels, as in a decompression bomb")


def to_8_bits(samples: np.ndarray) -> np.ndarray:
    """16-bit samples v as round(v / 257), uint8."""
    return np.ascontiguousarray((samples.astype(np.uint32) + 128) // 257, dtype=np.uint8)


def checksum(rgb: np.ndarray) -> int:
    """The CRC-32 of an image's shape and pixels, which identifies it whatever its file is."""
    return zlib.crc32(np.ascontiguousarray(rgb).data, zlib.crc32(str(rgb.shape).encode()))


def estimate_bytes(path: Path) -> int:
    """Estimate the bytes of the decoded image from its header; 0 if that cannot be read."""
    try:
        if path.suffix.lower() == ".webp":  # Pillow allocates all its pixels on opening, see open_image
            return 10 * path.stat().st_size
        with Image.open(path, formats=tuple(FORMATS)) as image:
            return 3 * image.width * image.height
    except Exception:  # reading it will say what is wrong
        return 0
