"""Pictures against Pillow, tifffile and PNG written by hand; what cannot be one is refused; transparency."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from data.picture import Picture, count_pixels, encode_picture, fill_transparent, read_picture, settle_alpha

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (9, 14, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (9, 14, 4), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]  # its header alone is looked at
PNG_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # samples of a pixel -> PNG's colour type


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_16(pixels: np.ndarray, *more: bytes) -> bytes:
    """A 16-bit PNG by the letter of its specification, rows not filtered; more: chunks before the pixels."""
    height, width, samples = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_TYPES[samples], 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def samples_of_png_16(data: bytes, samples: int) -> np.ndarray:
    """The pixels of a 16-bit PNG whose rows all have filter 2 (Up), by the specification."""
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        packed += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    width, height = struct.unpack(">II", data[16:24])
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 2).all()
    return rows[:, 1:].cumsum(0, dtype=np.uint8).view(">u2").reshape(height, width, samples).astype(np.uint16)


def saved(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


def written(path, data: bytes):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_16_bit_png(tmp_path, samples):
    pixels = DEEP[..., :samples]
    picture = read_picture(written(tmp_path / "a.png", png_16(pixels)))
    colours = samples - (samples in (2, 4))
    assert picture.bits == 16 and np.array_equal(picture.colour, pixels[..., :colours])
    assert np.array_equal(picture.alpha, pixels[..., -1]) if samples in (2, 4) else picture.alpha is None


def test_a_colour_of_16_bits_that_is_transparent(tmp_path):
    clear = DEEP[4, 5, :3]
    data = png_16(DEEP[..., :3], chunk(b"tRNS", clear.astype(">u2").tobytes()))
    picture = read_picture(written(tmp_path / "a.png", data))
    assert picture.alpha[4, 5] == 0 and (picture.alpha == 65535).sum() == picture.alpha.size - 1


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_tiff(tmp_path, compression, planar):
    pixels = DEEP if planar == "contig" else np.moveaxis(DEEP, -1, 0)
    options = dict(photometric="rgb", planarconfig=planar, extrasamples=["unassalpha"], metadata=None)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression=compression, iccprofile=SRGB, **options)
    picture = read_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.colour, DEEP[..., :3]) and np.array_equal(picture.alpha, DEEP[..., 3])
    assert picture.icc == SRGB


def test_grey_tiff_of_16_bits_where_0_is_white(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., 0], photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "a.tif").colour[..., 0], 65535 - DEEP[..., 0])


@pytest.mark.parametrize("bits", [8, 16])
def test_colours_multiplied_by_alpha_are_divided_again(tmp_path, bits):
    dtype, most = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    alpha = np.full((9, 14, 1), most // 2, dtype)
    colour = (DEEP[..., :3] >> (16 - bits)).astype(dtype)
    multiplied = np.rint(colour / most * alpha).astype(dtype)
    options = dict(photometric="rgb", extrasamples=["assocalpha"], metadata=None)
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([multiplied, alpha]), **options)
    picture = read_picture(tmp_path / "a.tif")
    assert np.abs(picture.colour.astype(int) - colour).max() <= 2 and np.array_equal(picture.alpha, alpha[..., 0])


KINDS_OF_8_BITS = {
    "RGB": (Image.fromarray(RGB), RGB),
    "L": (Image.fromarray(RGB[..., 0]), RGB[..., :1]),
    "1": (Image.fromarray(RGB[..., 0] > 99), (RGB[..., :1] > 99) * 255),
    "LA": (Image.fromarray(RGB[..., :2].copy()), RGB[..., :2]),
    "RGBA": (Image.fromarray(np.dstack([RGB, RGB[..., :1]])), np.dstack([RGB, RGB[..., :1]])),
    "P": (Image.fromarray(RGB).convert("P"), np.asarray(Image.fromarray(RGB).convert("P").convert("RGB"))),
    "CMYK": (Image.fromarray(RGB).convert("CMYK"), RGB),
}


@pytest.mark.parametrize("mode", KINDS_OF_8_BITS)
def test_8_bits(tmp_path, mode):
    image, pixels = KINDS_OF_8_BITS[mode]
    picture = read_picture(saved(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image))
    found = picture.colour if picture.alpha is None else np.dstack([picture.colour, picture.alpha])
    assert picture.bits == 8 and found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() <= (1 if mode == "CMYK" else 0)


def test_transparency_of_palettes_and_single_colours(tmp_path):
    palette = Image.fromarray(RGB).convert("P")
    index = np.asarray(palette)
    picture = read_picture(saved(tmp_path / "p.png", palette, transparency=int(index[3, 3])))
    assert picture.colour.shape == (9, 14, 3) and np.array_equal(picture.alpha == 0, index == index[3, 3])
    grey = RGB[..., 0]
    picture = read_picture(saved(tmp_path / "l.png", Image.fromarray(grey), transparency=int(grey[3, 3])))
    assert picture.colour.shape == (9, 14, 1) and np.array_equal(picture.alpha == 0, grey == grey[3, 3])
    picture = read_picture(saved(tmp_path / "c.png", Image.fromarray(RGB), transparency=tuple(map(int, RGB[3, 3]))))
    assert picture.alpha[3, 3] == 0 and picture.alpha.max() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.tif"])
def test_orientation(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / name, Image.fromarray(RGB), exif=exif, lossless=True)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    assert np.array_equal(read_picture(path).colour, expected)
    assert expected.shape == ((14, 9, 3) if orientation > 4 else (9, 14, 3))
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, DEEP[..., :3], photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, (DEEP[..., :3] >> 8).astype(np.uint8), photometric="rgb")
    upright = ImageOps.exif_transpose(_with_exif(plain, orientation))
    assert np.array_equal(read_picture(deep).colour >> 8, np.asarray(upright))


def _with_exif(path, orientation):
    image = Image.open(path).copy()
    image.getexif()[274] = orientation
    return image


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.tif"])
def test_a_profile_stays_if_it_is_of_the_picture(tmp_path, name):
    assert read_picture(saved(tmp_path / name, Image.fromarray(RGB), icc_profile=SRGB)).icc == SRGB
    if name != "a.webp":  # which has no grey
        grey = Image.fromarray(RGB[..., 0])
        assert read_picture(saved(tmp_path / name, grey, icc_profile=GREY_PROFILE)).icc == GREY_PROFILE
        assert read_picture(saved(tmp_path / name, grey, icc_profile=SRGB)).icc is None


def test_cmyk_loses_its_profile(tmp_path):
    cmyk = SRGB[:16] + b"CMYK" + SRGB[20:]  # no profile that could be used
    picture = read_picture(saved(tmp_path / "a.tif", Image.fromarray(RGB).convert("CMYK"), icc_profile=cmyk))
    assert picture.icc is None and np.abs(picture.colour.astype(int) - RGB).max() <= 1


def test_cmyk_is_converted_by_its_profile(tmp_path):
    """A profile in which C, M and Y are no inks at all, and K is: whatever the others say, white turns black by K."""
    lut = bytes(x for i in range(16) for x in ((0 if i & 1 else 255), 128, 128))  # Lab of the 16 corners, K the last
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + struct.pack(">IBBBB", 0, 4, 3, 2, 0) + matrix + 4 * ramp + lut + 3 * ramp
    table += b"\0" * (-len(table) % 4)
    white = b"XYZ " + struct.pack(">Iiii", 0, 63190, 65536, 54061)
    start = 128 + 4 + 2 * 12
    tags = struct.pack(">I", 2) + b"A2B0" + struct.pack(">II", start, len(table))
    tags += b"wtpt" + struct.pack(">II", start + len(table), len(white))
    size = start + len(table) + len(white)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ").ljust(36, b"\0") + b"acsp"
    header = (header.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)).ljust(128, b"\0")
    profile = header + tags + table + white
    inks = np.zeros((4, 5, 4), np.uint8)
    inks[..., 0] = 255  # full cyan
    inks[2:, :, 3] = 255  # and black
    path = saved(tmp_path / "a.tif", Image.fromarray(inks, mode="CMYK"), icc_profile=profile)
    picture = read_picture(path)
    assert picture.colour[:2].min() > 250 and picture.colour[2:].max() < 5 and picture.icc is None


def test_animations_are_refused(tmp_path):
    frames = dict(save_all=True, append_images=[Image.fromarray(RGB[::-1].copy())])
    for name, words in (
        ("a.png", "animated, 2"),
        ("a.webp", "animated, 2"),
        ("a.gif", "animated, 2"),
        ("a.tif", "2 pages"),
    ):
        path = saved(tmp_path / name, Image.fromarray(RGB), **frames)
        with pytest.raises(ValueError, match=f"cannot read image .*{name}: {words}"):
            read_picture(path)
    assert read_picture(saved(tmp_path / "still.gif", Image.fromarray(RGB))).colour.shape == (9, 14, 3)


def test_a_photograph_with_a_preview_in_it_is_no_animation(tmp_path):
    path = saved(
        tmp_path / "a.jpg", Image.fromarray(RGB), format="MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))]
    )
    assert read_picture(path).colour.shape == (9, 14, 3)


@pytest.mark.parametrize(
    "name, data",
    [
        ("f.tif", np.zeros((4, 5), np.float32)),
        ("i.tif", np.zeros((4, 5), np.uint32)),
        ("s.tif", np.zeros((4, 5), np.int16)),
    ],
)
def test_other_samples_are_refused(tmp_path, name, data):
    tifffile.imwrite(tmp_path / name, data)
    with pytest.raises(ValueError, match="expected 8 or 16 bits"):
        read_picture(tmp_path / name)


def test_damaged_16_bit_files_are_refused(tmp_path):
    data = png_16(DEEP)
    for broken in (data[:-30], data[:200] + bytes([data[200] ^ 1]) + data[201:], b""):
        with pytest.raises(ValueError, match="cannot read image"):
            read_picture(written(tmp_path / "a.png", broken))


def picture_of(samples: int, bits: int) -> Picture:
    pixels = DEEP.copy() if bits == 16 else (DEEP >> 8).astype(np.uint8)
    pixels[:4, :, 3] = 0  # what lies under clear pixels stays
    colours = samples - (samples in (2, 4))
    return Picture(pixels[..., :colours], pixels[..., 3] if colours < samples else None, SRGB if colours == 3 else None)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_files_hold_what_was_written(samples, bits):
    picture = picture_of(samples, bits)
    pixels = picture.colour if picture.alpha is None else np.dstack([picture.colour, picture.alpha])
    png, tiff, webp = (encode_picture(picture, kind) for kind in ("png", "tiff", "webp"))
    if bits == 16:
        assert np.array_equal(samples_of_png_16(png, samples), pixels)
        eight = np.rint(pixels / 257)
    else:
        eight = pixels
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))).reshape(pixels.shape), pixels)
        assert Image.open(io.BytesIO(png)).mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[samples]
    assert np.array_equal(tifffile.imread(io.BytesIO(tiff)).reshape(pixels.shape), pixels)
    found = np.asarray(Image.open(io.BytesIO(webp)))
    eight = eight if samples > 2 else np.dstack([eight[..., :1].repeat(3, 2), eight[..., 1:]])
    assert np.array_equal(found, eight)
    for data in (png, tiff, webp) if picture.icc else (png, webp):  # grey TIFFs with alpha are beyond Pillow
        assert Image.open(io.BytesIO(data)).info.get("icc_profile") == picture.icc
    with Image.open(io.BytesIO(png)) as image:
        image.verify()


def test_jpeg():
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    data = encode_picture(Picture(smooth, None, SRGB), "jpg")
    image = Image.open(io.BytesIO(data))
    assert np.abs(np.asarray(image).astype(int) - smooth).max() <= 8 and image.info["icc_profile"] == SRGB
    assert Image.open(io.BytesIO(encode_picture(Picture(smooth[..., :1]), "jpg"))).mode == "L"
    with pytest.raises(ValueError, match="holds no transparency; write png"):
        encode_picture(Picture(smooth, smooth[..., 0]), "jpg")


def test_what_a_format_has_no_room_for():
    with pytest.raises(ValueError, match="20000x1 pixels cannot be written as webp .*; try png"):
        encode_picture(Picture(np.zeros((1, 20000, 3), np.uint8)), "webp")


def test_16_bit_grey_of_other_formats(tmp_path):
    grey = DEEP[..., 0]
    written(tmp_path / "a.pgm", b"P5 14 9 65535 " + grey.astype(">u2").tobytes())
    assert np.array_equal(read_picture(tmp_path / "a.pgm").colour[..., 0], grey)
    assert read_picture(tmp_path / "a.pgm").bits == 16


def test_count_pixels(tmp_path):
    rgba = Image.fromarray(np.dstack([RGB, RGB[..., 0]]))
    assert count_pixels(saved(tmp_path / "a.webp", rgba)) == 9 * 14
    assert count_pixels(saved(tmp_path / "a.png", Image.fromarray(RGB))) == 9 * 14
    assert count_pixels(written(tmp_path / "b.png", b"no image")) == 0 == count_pixels(tmp_path / "none.png")


def test_colours_under_transparent_pixels_come_from_beside_them():
    colour = np.zeros((5, 5, 3), np.uint8)
    alpha = np.zeros((5, 5), np.uint8)
    colour[2, :2], alpha[2, :2] = (200, 100, 50), (255, 3)
    colour[2, 4], alpha[2, 4] = (9, 8, 7), 255
    filled = fill_transparent(Picture(colour, alpha))
    assert (filled[:, :3] == (200, 100, 50)).all() and (filled[:, 4] == (9, 8, 7)).all()
    for even in (np.zeros_like(alpha), np.full_like(alpha, 255)):
        assert fill_transparent(Picture(colour, even)) is colour


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_clear_and_opaque_parts_stay_so(dtype):
    most = np.iinfo(dtype).max
    alpha = np.zeros((8, 12), dtype)
    alpha[:, 6:] = most
    enlarged = np.full((16, 24), most // 2, dtype)  # a network that knows nothing
    settled = settle_alpha(alpha, enlarged)
    assert (settled[:, :10] == 0).all() and (settled[:, 10:14] == most // 2).all() and (settled[:, 14:] == most).all()
