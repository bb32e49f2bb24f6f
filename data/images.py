"""Finding image files and reading any of them as 8-bit RGB, or saying in one line why not."""

import ctypes
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .photographs import PREFIX, photographs

T = TypeVar("T")

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
# Named, so that a file in disguise never reaches a reader that starts other programs (EPS starts Ghostscript).
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_JPEG_MAGIC, _JPEG_SCAN = b"\xff\xd8", b"\xff\xda"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Beyond this Pillow suspects a decompression bomb; training images are two orders of magnitude smaller.
_MAX_PIXELS = 89_478_485
# As many pixels as 16-bit samples of four channels, and more.
MAX_BYTES = 1 << 30
# A progressive JPEG may go over all its pixels again for every few bytes: pixels times scans bound the time.
_MAX_SCANNED = 20 * _MAX_PIXELS
_MINISWHITE, _MINISBLACK, _RGB = 0, 1, 2  # TIFF's PhotometricInterpretation
ORIENTATION = 274  # the EXIF tag

# Either a file is refused with a reason, or what they warn of (odd metadata) does not touch its pixels. For the whole
# process, because files are read in threads, which share the filters of warnings.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def _silence_libtiff() -> None:
    try:
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler  # found among what Pillow is linked with
    except (OSError, AttributeError):  # a Pillow of another make: its lines on stderr stay
        return
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    set_handler(None)


# It would say on stderr what Pillow raises anyway. Pillow does the same for its warnings.
_silence_libtiff()


def list_images(folders: str | Path | Iterable[str | Path]) -> list[Path]:
    """All PNG, JPEG, BMP, WebP and TIFF files below the folders, links followed, hidden files and folders skipped.

    The files of one folder come sorted by path, the folders in the given order, no file twice. A folder called
    "skimage:NAME,NAME" stands for these photographs of scikit-image.
    Raises ValueError where a folder is missing, is a file, holds no image, or cannot be listed.
    """
    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    if not folders:
        raise ValueError("no folder given; expected at least one folder of images, name one")
    found: dict[Path, None] = {}
    for name in folders:
        if str(name).startswith(PREFIX):
            found.update(dict.fromkeys(photographs(str(name))))
            continue
        if name == "":  # Path would take it for the working folder
            raise ValueError("the name of a folder is empty; expected a folder of images, name one")
        folder = Path(name)
        # os.path's tests say no where Path's raise, as for too long a name.
        if os.path.isfile(folder):
            raise ValueError(f"{folder} is a file; expected a folder of images, use {folder.parent}")
        if not os.path.isdir(folder):
            raise ValueError(f"folder {folder} does not exist; expected a folder of images, check the path")
        images = sorted(path for path in walk(folder) if path.suffix.lower() in SUFFIXES)
        if not images:
            raise ValueError(f"no images in {folder}; expected PNG, JPEG, BMP, WebP or TIFF files, check the path")
        found.update(dict.fromkeys(images))
    return list(found)


def walk(folder: Path) -> Iterable[Path]:
    """The files below a folder that `list_images` chooses from, in no order. Raises ValueError."""

    def refuse(error: OSError):
        raise ValueError(f"cannot list folder {error.filename}: {error.strerror}; make it readable or remove it")

    seen = set()
    for root, below, names in os.walk(folder, followlinks=True, onerror=refuse):
        # A link may lead back up: every real folder is entered once.
        real = os.path.realpath(root)
        below[:] = sorted(name for name in below if not name.startswith(".")) if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            if not name.startswith("."):
                yield Path(root, name)


def read_rgb(path: str | Path) -> np.ndarray:
    """Read an image file as uint8 RGB (H,W,3), upright (EXIF orientation applied), the first frame of several.

    Grey becomes three equal channels, alpha is dropped (the colour under it stays), palettes and CMYK are converted.
    16-bit samples v become round(v / 257); 16-bit colour PNG alone gets Pillow's v >> 8, as in OpenCV.

    Raises ValueError("cannot read image <path>: <reason>; remove or replace it") for whatever else: missing,
    empty, truncated or damaged files, float or other samples, sizes of a decompression bomb, pipes and devices.
    """
    return read_with(_decode, path)


def read_with(decode: Callable[[bytes], T], path: str | Path) -> T:
    """decode(the file's bytes); whatever that raises becomes the ValueError that `read_rgb` tells of."""
    try:
        return decode(_contents(Path(path)))
    except UnidentifiedImageError:
        reason = "not a PNG, JPEG, BMP, WebP or TIFF image, or damaged"
    except OSError as error:
        reason = error.strerror or str(error)
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError on damaged files
        reason = str(error) or type(error).__name__
    raise ValueError(f"cannot read image {path}: {' '.join(reason.split())}; remove or replace it")


def _contents(path: Path) -> bytes:
    size = path.stat().st_size
    if not (path.is_file() or path.is_dir()):  # it could keep its reader waiting, or never end
        raise ValueError("a pipe or a device, not a file")
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes are more than {MAX_BYTES}")
    return path.read_bytes()


def _decode(data: bytes) -> np.ndarray:
    inverted = False
    image = None
    if data.startswith(TIFF_MAGIC):
        image, inverted = _inspect_tiff(data)
    if image is None:
        image = open_image(data)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        return np.repeat(to_8_bits(65535 - grey if inverted else grey)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit samples; expected 8 or 16 bits")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB Pillow warns of transparency that it drops
    return np.array(image.convert("RGB"))


def open_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The image in a file's bytes, its size and check sums found good but its pixels not decoded yet.

    Raises ValueError for sizes of a decompression bomb, and what Pillow does for damaged files and other formats.
    """
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X":  # Pillow makes room for all its pixels on opening
        check_size(*(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)))
    image = Image.open(BytesIO(data), formats=formats)
    check_size(*image.size)
    if data.startswith(_JPEG_MAGIC):
        scans = data.count(_JPEG_SCAN)
        if scans * image.width * image.height > _MAX_SCANNED:
            raise ValueError(f"{scans} scans of {image.width}x{image.height} pixels, as in a decompression bomb")
    if image.format == "PNG":
        # Decoding alone does not look at the check sums; verify() leaves the image unusable.
        image.verify()
        image = Image.open(BytesIO(data), formats=formats)
    return image


def _inspect_tiff(data: bytes) -> tuple[Image.Image | None, bool]:
    """The image where Pillow would lose bits or order (16-bit samples, several per pixel); is 0 white in 16-bit grey?

    Raises ValueError for samples that are not unsigned integers of up to 8, or of 16 bits.
    """
    import tifffile  # here, because TIFF is rare and the import is slow

    with tifffile.TiffFile(BytesIO(data)) as tiff:
        page = tiff.pages.first
        check_size(page.imagewidth, page.imagelength)
        if page.nbytes > MAX_BYTES:
            size = f"{page.imagewidth}x{page.imagelength} pixels of {page.samplesperpixel} samples"
            raise ValueError(f"{size} make {page.nbytes} bytes, as in a decompression bomb")
        if page.dtype not in (np.bool_, np.uint8, np.uint16) or page.bitspersample not in (1, 2, 4, 8, 16):
            raise ValueError(f"{page.bitspersample}-bit {page.dtype} samples; expected 8 or 16 bits, unsigned")
        if page.dtype != np.uint16 or page.photometric not in (_MINISWHITE, _MINISBLACK, _RGB):
            return None, False
        if page.samplesperpixel == 1:
            return None, page.photometric == _MINISWHITE
        if page.photometric == _MINISWHITE:
            raise ValueError("16-bit grey with alpha where 0 is white; expected 0 to be black")
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts)]
        if not ends or max(ends) > len(data):
            raise ValueError(f"truncated: its pixels go on after the last of {len(data)} bytes")
        pixels = page.asarray()
        orientation = page.tags.valueof(ORIENTATION, default=1)
        planar = page.axes == "SYX"
        colour = page.photometric == _RGB
    pixels = np.moveaxis(pixels, 0, -1) if planar else pixels
    pixels = pixels[..., :3] if colour else np.repeat(pixels[..., :1], 3, axis=2)
    image = Image.fromarray(to_8_bits(pixels))
    image.getexif()[ORIENTATION] = int(orientation)
    return image, False


def check_size(width: int, height: int) -> None:
    """Raise ValueError for more pixels than an image has that is no decompression bomb."""
    if width * height > _MAX_PIXELS:
        raise ValueError(f"{width}x{height} are more than {_MAX_PIXELS} pixels, as in a decompression bomb")


def to_8_bits(samples: np.ndarray) -> np.ndarray:
    """16-bit samples v as round(v / 257), uint8."""
    return np.ascontiguousarray((samples.astype(np.uint32) + 128) // 257, dtype=np.uint8)
