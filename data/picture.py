"""Read and write images for upscaling: grey or RGB, 8 or 16 bits, with alpha and colour profile."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageCms
from scipy import ndimage

from .images import FORMATS, ORIENTATION, TIFF_MAGIC, check_size, open_image, read_with, to_8_bits

# A JPEG with several images is a photograph with a preview; tifffile counts a TIFF's pages.
_ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")
# zlib's level and PNG's row filter: on photographs a tenth of the time of Pillow's defaults, with files 1/9 larger.
_PNG_LEVEL, _PNG_FILTER = 1, imagecodecs.PNG.FILTER.UP
_JPEG_QUALITY = 95
_PNG_SIGNATURE_AND_HEADER, _PNG_DEPTH = 33, 24  # the size of both in bytes; the offset of the bit depth
# EXIF's Orientation -> the flip or rotation that makes the picture upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
_COLOURS = {b"GRAY": 1, b"RGB ": 3}  # an ICC profile's colour space -> its channels
_MINISWHITE, _MINISBLACK, _RGB = 0, 1, 2  # TIFF's PhotometricInterpretation
_ASSOCIATED = 1  # TIFF's ExtraSamples: colours are multiplied by alpha


@dataclass(frozen=True)
class Picture:
    """An image: colour (H,W,1) grey or (H,W,3) RGB, uint8 or uint16, upright, not multiplied by alpha.

    alpha: (H,W) of the same dtype; None: opaque. icc: the ICC profile of `colour`, or None.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None

    @property
    def bits(self) -> int:
        """Bits per sample, 8 or 16."""
        return 8 * self.colour.dtype.itemsize


def read_picture(path: str | Path) -> Picture:
    """Read an image file at its full bit depth. Palettes, YCbCr and CMYK become RGB; grey stays grey.

    Raises ValueError("cannot read image <path>: <reason>; remove or replace it") as `read_rgb` does, and for animations
    and TIFFs of several pages.
    """
    return read_with(_decode, path)


def count_pixels(path: str | Path) -> int:
    """The number of pixels according to a file's header; 0 if that cannot be read."""
    try:
        if not Path(path).is_file():  # reading a pipe may block
            return 0
        with open(path, "rb") as file:
            head = file.read(30)
            if head[8:16] == b"WEBPVP8X":  # Pillow allocates all its pixels on opening
                width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
                return width * height
            with Image.open(file, formats=tuple(FORMATS)) as image:
                return image.width * image.height
    except Exception:  # read_picture will say why
        return 0


def _decode(data: bytes) -> Picture:
    tiff = _decode_tiff(data) if data.startswith(TIFF_MAGIC) else None
    if tiff is not None:
        return tiff
    image = open_image(data)
    frames = getattr(image, "n_frames", 1)
    if image.format in _ANIMATED and frames > 1:
        raise ValueError(f"animated, {frames} frames")
    image.load()
    icc = image.info.get("icc_profile")
    if image.format == "PNG" and data[_PNG_DEPTH] == 16:  # Pillow has 16 bits only for grey
        pixels = imagecodecs.png_decode(data)
    elif image.mode.startswith("I;16") or image.mode == "I" and image.format == "PPM":
        pixels = np.asarray(image).astype(np.uint16)
    else:
        if image.mode == "CMYK":
            image, icc = _from_cmyk(image, icc), None
        pixels = np.asarray(image.convert(_mode(image)))
    return _picture(pixels, icc, image.getexif().get(ORIENTATION))


def _mode(image: Image.Image) -> str:
    """Pillow's mode to convert an 8-bit image to: L, LA, RGB or RGBA. Raises ValueError for other samples."""
    transparent = "transparency" in image.info  # one transparent colour, or palette entries
    if image.mode in ("1", "L"):
        return "LA" if transparent else "L"
    if image.mode in ("LA", "La"):
        return "LA"
    if image.mode in ("PA", "RGBA", "RGBa") or transparent:
        return "RGBA"
    if image.mode in ("P", "RGB", "RGBX", "YCbCr"):
        return "RGB"
    raise ValueError(f"samples of kind {image.mode}; expected grey, RGB, a palette or CMYK, of 8 or 16 bits")


def _from_cmyk(image: Image.Image, icc: bytes | None) -> Any:
    """Convert CMYK to sRGB by the image's profile or, without a usable one, to RGB by Pillow's formula."""
    if icc:
        try:
            return ImageCms.profileToProfile(image, BytesIO(icc), ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError:  # not a CMYK profile
            pass
    return image.convert("RGB")


def _decode_tiff(data: bytes) -> Picture | None:
    """Decode a 16-bit TIFF; None for 8 bits or less, which Pillow reads without loss. Raises ValueError."""
    with tifffile.TiffFile(BytesIO(data)) as tiff:
        page = tiff.pages.first
        check_size(page.imagewidth, page.imagelength)
        pages = sum(not p.aspage().is_reduced for p in tiff.pages) if len(tiff.pages) > 1 else 1
        if pages > 1:
            raise ValueError(f"{pages} pages")
        if page.dtype not in (np.bool_, np.uint8, np.uint16) or page.bitspersample not in (1, 2, 4, 8, 16):
            raise ValueError(f"{page.bitspersample}-bit {page.dtype} samples; expected 8 or 16 bits, unsigned")
        if page.dtype != np.uint16:
            return None
        colours = {_MINISWHITE: 1, _MINISBLACK: 1, _RGB: 3}.get(page.photometric)
        if colours is None or page.samplesperpixel - colours not in (0, 1):
            raise ValueError(f"16-bit samples, {page.samplesperpixel} a pixel; expected grey or RGB, with alpha or not")
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts)]
        if not ends or max(ends) > len(data):
            raise ValueError(f"truncated: its pixels go on after the last of {len(data)} bytes")
        pixels = page.asarray()
        pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else np.atleast_3d(pixels)
        if page.photometric == _MINISWHITE:
            pixels = np.concatenate([65535 - pixels[..., :1], pixels[..., 1:]], axis=2)
        if page.samplesperpixel > colours and page.extrasamples and page.extrasamples[0] == _ASSOCIATED:
            alpha = np.maximum(pixels[..., -1:], 1).astype(np.float64)
            straight = np.rint(pixels[..., :-1] / alpha * 65535).clip(0, 65535).astype(np.uint16)
            pixels = np.concatenate([straight, pixels[..., -1:]], axis=2)
        return _picture(pixels, page.iccprofile, page.tags.valueof(ORIENTATION, default=1))


def _picture(pixels: np.ndarray, icc: bytes | None, orientation: int | None) -> Picture:
    """Build a Picture from grey, grey + alpha, RGB or RGBA samples that are not upright yet."""
    pixels = _UPRIGHT.get(orientation or 1, lambda x: x)(pixels if pixels.ndim == 3 else pixels[..., None])
    colours = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    alpha = np.ascontiguousarray(pixels[..., -1]) if colours < pixels.shape[2] else None
    if icc is not None:
        icc = bytes(icc) if len(icc) >= 128 and _COLOURS.get(icc[16:20]) == colours else None
    return Picture(np.ascontiguousarray(pixels[..., :colours]), alpha, icc)


def encode_picture(picture: Picture, kind: str) -> bytes:
    """Encode a picture as the bytes of a file; kind: a key of ENCODERS. JPEG and WebP round 16 bits to 8.

    Raises ValueError if the kind has no transparency or cannot hold this size.
    """
    if kind == "jpg" and picture.alpha is not None:
        raise ValueError("a JPEG file holds no transparency; write png, webp or tiff")
    try:
        return ENCODERS[kind](picture)
    except Exception as error:  # Pillow raises many kinds for sizes beyond a format's limit
        height, width = picture.colour.shape[:2]
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{width}x{height} pixels cannot be written as {kind} ({reason}); try png") from None


def _samples(picture: Picture) -> np.ndarray:
    """The samples, (H,W) for grey or (H,W,2 to 4) with alpha last."""
    alpha = [] if picture.alpha is None else [picture.alpha]
    pixels = np.dstack([picture.colour, *alpha]) if alpha else picture.colour
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _png(picture: Picture) -> bytes:
    data: Any = imagecodecs.png_encode(_samples(picture), level=_PNG_LEVEL, filter=_PNG_FILTER)
    if picture.icc is None:
        return data
    chunk = b"iCCP" + b"ICC profile\0\0" + zlib.compress(picture.icc)
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:_PNG_SIGNATURE_AND_HEADER] + framed + data[_PNG_SIGNATURE_AND_HEADER:]


def _tiff(picture: Picture) -> bytes:
    buffer = BytesIO()
    tifffile.imwrite(
        buffer,
        _samples(picture),
        photometric="rgb" if picture.colour.shape[2] == 3 else "minisblack",
        planarconfig="contig" if picture.colour.shape[2] == 3 or picture.alpha is not None else None,
        extrasamples=None if picture.alpha is None else ["unassalpha"],
        compression="zlib",
        compressionargs={"level": _PNG_LEVEL},
        predictor=True,
        iccprofile=picture.icc,
        metadata=None,
    )
    return buffer.getvalue()


def _by_pillow(picture: Picture, kind: str, **options) -> bytes:
    pixels, buffer = _samples(picture), BytesIO()
    image = Image.fromarray(to_8_bits(pixels) if picture.bits == 16 else pixels)
    image.save(buffer, kind, icc_profile=picture.icc or b"", **options)
    return buffer.getvalue()


def _webp(picture: Picture) -> bytes:
    # exact: keep the colours under transparent pixels, which viewers mix in when they scale the image.
    return _by_pillow(picture, "WEBP", lossless=True, quality=20, method=1, exact=True)


def _jpeg(picture: Picture) -> bytes:
    return _by_pillow(picture, "JPEG", quality=_JPEG_QUALITY, subsampling=0)


ENCODERS: dict[str, Callable[[Picture], bytes]] = {"png": _png, "webp": _webp, "jpg": _jpeg, "tiff": _tiff}
# Suffix -> the kind in which a file with that suffix can be written.
KINDS = {
    suffix: kind
    for name, kind in {"PNG": "png", "WEBP": "webp", "JPEG": "jpg", "TIFF": "tiff"}.items()
    for suffix in FORMATS[name]
}


def fill_transparent(picture: Picture) -> np.ndarray:
    """The picture's colour, with fully transparent pixels replaced by their nearest other pixel.

    Otherwise upscaling would mix the colour under transparent pixels, most often black, into the edges.
    """
    if picture.alpha is None or picture.alpha.all() or not picture.alpha.any():
        return picture.colour
    nearest: Any = ndimage.distance_transform_edt(picture.alpha == 0, return_distances=False, return_indices=True)
    return picture.colour[tuple(nearest)]


def settle_alpha(alpha: np.ndarray, enlarged: np.ndarray) -> np.ndarray:
    """enlarged alpha (s*h,s*w), made 0 or opaque where alpha (h,w) and all its neighbours are so."""
    scale = enlarged.shape[0] // alpha.shape[0]
    low, high = (filter_(alpha, 3, mode="nearest") for filter_ in (ndimage.minimum_filter, ndimage.maximum_filter))
    even = (low == high) & ((low == 0) | (low == np.iinfo(alpha.dtype).max))
    return np.where(even.repeat(scale, 0).repeat(scale, 1), alpha.repeat(scale, 0).repeat(scale, 1), enlarged)
