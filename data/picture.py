"""Images for upscaling (grey or RGB, 8 or 16 bits, transparent, with a colour profile) and their files."""

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

# JPEGs of several images are photographs with a preview in them, and TIFFs are read by tifffile.
_ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")
# zlib's level and PNG's filter of rows: on photographs a tenth of the time of Pillow's defaults, files a ninth larger.
_PNG_LEVEL, _PNG_FILTER = 1, imagecodecs.PNG.FILTER.UP
_JPEG_QUALITY = 95
_PNG_SIGNATURE_AND_HEADER, _PNG_DEPTH = 33, 24  # bytes; where among them a sample's bits stand
# What Orientation asks for, by its values, so that the picture is upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
_COLOURS = {b"GRAY": 1, b"RGB ": 3}  # a profile's kind of colours, and how many channels they have
_MINISWHITE, _MINISBLACK, _RGB = 0, 1, 2  # TIFF's PhotometricInterpretation
_ASSOCIATED = 1  # TIFF's ExtraSamples: colours are multiplied by alpha


@dataclass(frozen=True)
class Picture:
    """colour: (H,W,1) grey or (H,W,3) RGB, of uint8 or uint16, upright; alpha: (H,W) of the same type, None if opaque.

    Colours are not multiplied by alpha. icc: the colour profile of `colour`, or None.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None

    @property
    def bits(self) -> int:
        """Of a sample: 8 or 16."""
        return 8 * self.colour.dtype.itemsize


def read_picture(path: str | Path) -> Picture:
    """Read an image file with all its bits. Palettes, YCbCr and CMYK become RGB; whatever is grey stays grey.

    Raises ValueError("cannot read image <path>: <reason>; remove or replace it") as `read_rgb` does, and for images of
    several frames.
    """
    return read_with(_decode, path)


def count_pixels(path: str | Path) -> int:
    """The number of pixels that a file states; 0 if it states none."""
    try:
        if not Path(path).is_file():  # a pipe would keep its reader waiting
            return 0
        with open(path, "rb") as file:
            head = file.read(30)
            if head[8:16] == b"WEBPVP8X":  # Pillow makes room for all its pixels on opening
                width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
                return width * height
            with Image.open(file, formats=tuple(FORMATS)) as image:
                return image.width * image.height
    except Exception:  # reading it will say why
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
    if image.format == "PNG" and data[_PNG_DEPTH] == 16:  # Pillow has 16 bits for grey alone
        pixels = imagecodecs.png_decode(data)
    elif image.mode.startswith("I;16") or image.mode == "I" and image.format == "PPM":
        pixels = np.asarray(image).astype(np.uint16)
    else:
        if image.mode == "CMYK":
            image, icc = _from_cmyk(image, icc), None
        pixels = np.asarray(image.convert(_mode(image)))
    return _picture(pixels, icc, image.getexif().get(ORIENTATION))


def _mode(image: Image.Image) -> str:
    """Pillow's mode that holds all of the image that a Picture can. Raises ValueError for other samples."""
    transparent = "transparency" in image.info  # one colour, or entries of a palette
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
    """RGB by the image's own profile, as sRGB, or without a profile by Pillow's formula."""
    if icc:
        try:
            return ImageCms.profileToProfile(image, BytesIO(icc), ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError:  # no profile of CMYK
            pass
    return image.convert("RGB")


def _decode_tiff(data: bytes) -> Picture | None:
    """The picture in a TIFF file of 16 bits; None if Pillow reads it without a loss. Raises ValueError."""
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
    """The picture of grey, grey and alpha, RGB or RGBA samples that are not upright yet."""
    pixels = _UPRIGHT.get(orientation or 1, lambda x: x)(pixels if pixels.ndim == 3 else pixels[..., None])
    colours = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    alpha = np.ascontiguousarray(pixels[..., -1]) if colours < pixels.shape[2] else None
    if icc is not None:
        icc = bytes(icc) if len(icc) >= 128 and _COLOURS.get(icc[16:20]) == colours else None
    return Picture(np.ascontiguousarray(pixels[..., :colours]), alpha, icc)


def encode_picture(picture: Picture, kind: str) -> bytes:
    """The bytes of a file of a kind in ENCODERS. JPEG and WebP hold 8 bits: 16 are rounded to them.

    Raises ValueError if the kind holds no transparency, or no picture of this size.
    """
    if kind == "jpg" and picture.alpha is not None:
        raise ValueError("a JPEG file holds no transparency; write png, webp or tiff")
    try:
        return ENCODERS[kind](picture)
    except Exception as error:  # Pillow raises what it likes for sizes that a format has no room for
        height, width = picture.colour.shape[:2]
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{width}x{height} pixels cannot be written as {kind} ({reason}); try png") from None


def _samples(picture: Picture) -> np.ndarray:
    """(H,W) grey or (H,W,2 to 4) with alpha last."""
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
    # exact: the colours under transparent pixels stay, else viewers that scale mix in whatever compresses best.
    return _by_pillow(picture, "WEBP", lossless=True, quality=20, method=1, exact=True)


def _jpeg(picture: Picture) -> bytes:
    return _by_pillow(picture, "JPEG", quality=_JPEG_QUALITY, subsampling=0)


ENCODERS: dict[str, Callable[[Picture], bytes]] = {"png": _png, "webp": _webp, "jpg": _jpeg, "tiff": _tiff}
# By suffix, in which kind a file of the same name can be written.
KINDS = {
    suffix: kind
    for name, kind in {"PNG": "png", "WEBP": "webp", "JPEG": "jpg", "TIFF": "tiff"}.items()
    for suffix in FORMATS[name]
}


def fill_transparent(picture: Picture) -> np.ndarray:
    """The picture's colour, where nothing is seen of it replaced by that of the nearest pixel that shows some.

    What lies under transparent pixels, most often black, would darken the seen ones beside them in any enlarging.
    """
    if picture.alpha is None or picture.alpha.all() or not picture.alpha.any():
        return picture.colour
    nearest: Any = ndimage.distance_transform_edt(picture.alpha == 0, return_distances=False, return_indices=True)
    return picture.colour[tuple(nearest)]


def settle_alpha(alpha: np.ndarray, enlarged: np.ndarray) -> np.ndarray:
    """enlarged (s*h,s*w), exactly clear or opaque where alpha (h,w) is so with all its neighbours."""
    scale = enlarged.shape[0] // alpha.shape[0]
    low, high = (filter_(alpha, 3, mode="nearest") for filter_ in (ndimage.minimum_filter, ndimage.maximum_filter))
    even = (low == high) & ((low == 0) | (low == np.iinfo(alpha.dtype).max))
    return np.where(even.repeat(scale, 0).repeat(scale, 1), alpha.repeat(scale, 0).repeat(scale, 1), enlarged)
