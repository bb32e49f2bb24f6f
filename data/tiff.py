"""TIFF files that Pillow reads with losses or not at all: 16 bits, and more bands than colours."""

from io import BytesIO

import numpy as np
from PIL import Image
from tifffile import TiffFile, TiffPage

from .images import MAX_BYTES, ORIENTATION, check_size, to_8_bits

_MINISWHITE, _MINISBLACK, _RGB = 0, 1, 2  # TIFF's PhotometricInterpretation
_COLOURS = {_MINISWHITE: 1, _MINISBLACK: 1, _RGB: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # 3 palette, 5 CMYK, 6 YCbCr, 8 CIELAB
_ASSOCIATED_ALPHA, _ALPHA = 1, 2  # ExtraSamples: colours multiplied by alpha, or not


def inspect_tiff(data: bytes) -> tuple[Image.Image | None, bool]:
    """Return (image, inverted): an 8-bit image if Pillow cannot read the TIFF without loss, else None.

    That is so for 16 bits with several samples, and for alpha. inverted: 0 is white in 16-bit grey, left to Pillow.

    Raises ValueError for bands beyond the colours other than alpha, samples that are not unsigned integers of up to 8
    or of 16 bits, decompression bombs and truncated files.
    """
    with TiffFile(BytesIO(data)) as tiff:
        page = tiff.pages.first
        check_size(page.imagewidth, page.imagelength)
        if page.nbytes > MAX_BYTES:
            size = f"{page.imagewidth}x{page.imagelength} pixels of {page.samplesperpixel} samples"
            raise ValueError(f"{size} make {page.nbytes} bytes, as in a decompression bomb")
        if page.dtype not in (np.bool_, np.uint8, np.uint16) or page.bitspersample not in (1, 2, 4, 8, 16):
            raise ValueError(f"{page.bitspersample}-bit {page.dtype} samples; expected 8 or 16 bits, unsigned")
        alpha = _find_alpha(page)
        if page.photometric not in (_MINISWHITE, _MINISBLACK, _RGB) or page.bitspersample < (
            16 if alpha is None else 8
        ):
            return None, False
        if page.samplesperpixel == 1:
            return None, page.photometric == _MINISWHITE
        if page.photometric == _MINISWHITE:
            raise ValueError("grey with alpha where 0 is white; expected 0 to be black")
        ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts)]
        if not ends or max(ends) > len(data):
            raise ValueError(f"truncated: its pixels go on after the last of {len(data)} bytes")
        pixels = page.asarray()
        orientation = page.tags.valueof(ORIENTATION, default=1)
        pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels
    colours = pixels[..., : pixels.shape[-1] - (alpha is not None)]
    if alpha == _ASSOCIATED_ALPHA:
        most = np.uint32(np.iinfo(pixels.dtype).max)
        opacity = np.maximum(pixels[..., -1:], 1).astype(np.uint32)
        colours = np.minimum((colours * most + opacity // 2) // opacity, most).astype(pixels.dtype)
    colours = np.broadcast_to(colours, (*colours.shape[:2], 3))
    image = Image.fromarray(to_8_bits(colours) if colours.dtype == np.uint16 else np.ascontiguousarray(colours))
    image.getexif()[ORIENTATION] = int(orientation)
    return image, False


def _find_alpha(page: TiffPage) -> int | None:
    """The last band's kind of alpha; None without bands beyond the colours; ValueError for other bands."""
    colours = _COLOURS.get(page.photometric, page.samplesperpixel)
    kinds = tuple(map(int, page.extrasamples))
    if page.samplesperpixel <= colours:
        return None
    if page.samplesperpixel == colours + 1 and kinds in ((_ASSOCIATED_ALPHA,), (_ALPHA,)):
        return kinds[0]
    if page.samplesperpixel == colours + 1 == 4 and not kinds:  # RGBA of writers that omit the tag
        return _ALPHA
    name = "grey" if colours == 1 else getattr(page.photometric, "name", page.photometric)
    raise ValueError(
        f"{page.samplesperpixel} bands, {colours} of them {name} and {page.samplesperpixel - colours} no alpha; "
        "expected grey or RGB, with or without alpha"
    )
