"""Every mode and kind of damage, written with Pillow and tifffile."""

import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile, ImageOps

from data.images import list_images, passed_over, read_rgb

RGB = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (20, 31, 3), dtype=np.uint16)
GREY = RGB[..., :1].repeat(3, axis=2)


def to_8_bits(samples):
    return np.rint(samples / 257).astype(np.uint8)


def grey(samples):
    return samples[..., None].repeat(3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF", "webp", "ppm", "jp2", "J2K", "apng"])
def test_rgb_in_every_lossless_format(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert list_images(tmp_path) == [path]
    pixels = read_rgb(path)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, RGB)
    assert np.array_equal(read_rgb(str(path)), RGB)


def test_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    smooth = np.indices((32, 48)).transpose(1, 2, 0).sum(2).astype(np.uint8)
    Image.fromarray(smooth).save(path, quality=95)
    assert np.abs(read_rgb(path).astype(int) - grey(smooth)).max() <= 3
    Image.fromarray(grey(smooth)).convert("CMYK").save(path, quality=100)
    assert np.abs(read_rgb(path).astype(int) - grey(smooth)).max() <= 6


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPEG", "avif"])
def test_nearly_lossless_formats(tmp_path, suffix):
    smooth = np.indices((32, 48)).transpose(1, 2, 0).sum(2).astype(np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(grey(smooth)).save(path, "AVIF" if suffix == "avif" else "JPEG", quality=95)
    assert np.abs(read_rgb(path).astype(int) - grey(smooth)).max() <= 3 and list_images(tmp_path) == [path]


def test_portable_maps(tmp_path):
    """By Netpbm's specification: binary and plain, of 8 and of 16 bits, grey, colour and bits."""
    one, deep = RGB[..., 0], DEEP[..., 0]
    plain = " ".join(map(str, RGB.ravel()))
    for name, data, expected in [
        ("a.pgm", b"P5 31 20 255\n" + one.tobytes(), GREY),
        ("b.pgm", b"P5 31 20 65535\n" + deep.astype(">u2").tobytes(), grey(to_8_bits(deep))),
        ("c.pgm", b"P5 31 20 4095\n" + (deep >> 4).astype(">u2").tobytes(), grey(np.rint((deep >> 4) / 4095 * 255))),
        ("d.ppm", f"P3 31 20 255\n{plain}\n".encode(), RGB),
        ("e.ppm", b"P6 31 20 65535\n" + DEEP.astype(">u2").tobytes(), to_8_bits(DEEP)),
        ("f.pbm", b"P4 31 20\n" + np.packbits(one < 99, axis=1).tobytes(), grey(255 * (one >= 99))),
    ]:
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_rgb(tmp_path / name), expected), name


def test_16_bit_jpeg_2000(tmp_path):
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "a.jp2")
    assert np.array_equal(read_rgb(tmp_path / "a.jp2"), grey(to_8_bits(DEEP[..., 0])))


@pytest.mark.parametrize("frames", [1, 3])
def test_the_first_frame_of_a_gif(tmp_path, frames):
    first, *more = (Image.fromarray(x).quantize(64) for x in (RGB, 255 - RGB, RGB // 2)[:frames])
    first.save(tmp_path / "a.gif", save_all=True, append_images=more)
    assert np.array_equal(read_rgb(tmp_path / "a.gif"), np.array(first.convert("RGB")))


def test_grey_alpha_palette_and_bilevel(tmp_path):
    path = tmp_path / "a.png"
    alpha = Image.fromarray(np.random.default_rng(2).integers(0, 256, (20, 31), dtype=np.uint8))
    colour, one = Image.fromarray(RGB), Image.fromarray(RGB[..., 0])
    palette = colour.quantize(16)
    bits = one.point(lambda v: 255 * (v > 99), mode="1")
    for image, expected in [
        (one, GREY),
        (Image.merge("LA", (one, alpha)), GREY),
        (Image.merge("RGBA", (*colour.split(), alpha)), RGB),
        (palette, np.array(palette.convert("RGB"))),
        (bits, grey(255 * (RGB[..., 0] > 99))),
    ]:
        image.save(path)
        assert np.array_equal(read_rgb(path), expected), image.mode


@pytest.mark.parametrize("transparency", [3, bytes(range(16))])
@pytest.mark.filterwarnings("error")
def test_palette_with_transparency_keeps_the_colours(tmp_path, transparency):
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "a.png", transparency=transparency)
    assert np.array_equal(read_rgb(tmp_path / "a.png"), np.array(palette.convert("RGB")))


def test_cmyk_tiff(tmp_path):
    image = Image.fromarray(RGB).convert("CMYK")
    image.save(tmp_path / "a.tif")
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), np.array(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(DEEP[..., 0]).save(path)
    assert np.array_equal(read_rgb(path), grey(to_8_bits(DEEP[..., 0])))


@pytest.mark.parametrize("photometric, byteorder", [("minisblack", "<"), ("minisblack", ">"), ("miniswhite", "<")])
def test_16_bit_grey_tiff(tmp_path, photometric, byteorder):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, DEEP[..., 0], photometric=photometric, byteorder=byteorder)
    expected = DEEP[..., 0] if photometric == "minisblack" else 65535 - DEEP[..., 0]
    assert np.array_equal(read_rgb(path), grey(to_8_bits(expected)))


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("settings", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}])
def test_16_bit_colour_tiff(tmp_path, planar, settings):
    samples = DEEP if planar == "contig" else np.ascontiguousarray(DEEP.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", planarconfig=planar, **settings)
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), to_8_bits(DEEP))


def test_16_bit_tiff_with_alpha(tmp_path):
    for samples, photometric in ((DEEP[..., :2], "minisblack"), (np.dstack([DEEP, DEEP[..., :1]]), "rgb")):
        tifffile.imwrite(
            tmp_path / "a.tif", samples, photometric=photometric, planarconfig="contig", extrasamples=["unassalpha"]
        )
        expected = to_8_bits(DEEP) if photometric == "rgb" else grey(to_8_bits(DEEP[..., 0]))
        assert np.array_equal(read_rgb(tmp_path / "a.tif"), expected)


CODECS = [("lzw", True), ("lzw", False), ("packbits", False), ("zlib", True), ("zstd", False), ("lzma", False)]


@pytest.mark.parametrize("compression, predictor", CODECS)
@pytest.mark.parametrize("samples", [RGB, DEEP], ids=["8", "16"])
def test_compressed_tiff(tmp_path, samples, compression, predictor):
    """With the listed requirements; OpenCV writes LZW with a predictor."""
    eight = samples if samples.dtype == np.uint8 else to_8_bits(samples)
    for pixels, photometric, expected in (
        (samples, "rgb", eight),
        (samples[..., 0], "minisblack", grey(eight[..., 0])),
    ):
        settings = {"compression": compression, "predictor": predictor}
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, rowsperstrip=7, **settings)
        assert np.array_equal(read_rgb(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("samples", [RGB, DEEP], ids=["8", "16"])
def test_bands_are_refused_or_read(tmp_path, samples, planar):
    """Alike for both depths; none is dropped that the file does not call alpha."""
    eight = samples if samples.dtype == np.uint8 else to_8_bits(samples)
    five = np.dstack([samples, samples[..., :2]])

    def write(bands, photometric, extra=None):
        pixels = five[..., :bands] if planar == "contig" else np.ascontiguousarray(five[..., :bands].transpose(2, 0, 1))
        settings = {"photometric": photometric, "planarconfig": planar, "extrasamples": extra}
        tifffile.imwrite(tmp_path / "a.tif", pixels, **settings)

    for bands in (2, 3, 4, 5):
        write(bands, "minisblack")
        assert f"{bands} bands, 1 of them grey and {bands - 1} no alpha" in refusal(tmp_path / "a.tif")
    for bands, extra in ((4, ["unspecified"]), (5, ["unassalpha", "unspecified"])):
        write(bands, "rgb", extra)
        assert f"{bands} bands, 3 of them RGB and {bands - 3} no alpha" in refusal(tmp_path / "a.tif")
    write(4, "rgb", ["unassalpha"])
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), eight)
    write(2, "minisblack", ["unassalpha"])
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), grey(eight[..., 0]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_that_were_multiplied_by_alpha(tmp_path, dtype):
    most = np.iinfo(dtype).max
    alpha = np.random.default_rng(4).integers(most // 3, most, (20, 31, 1), endpoint=True)
    colours = np.rint(RGB / 255 * alpha).astype(dtype)
    for bands, expected in ((3, RGB), (1, GREY)):
        pixels = np.concatenate([colours[..., :bands], alpha.astype(dtype)], axis=2)
        photometric = "rgb" if bands == 3 else "minisblack"
        tifffile.imwrite(
            tmp_path / "a.tif", pixels, photometric=photometric, planarconfig="contig", extrasamples=["assocalpha"]
        )
        assert np.abs(read_rgb(tmp_path / "a.tif").astype(int) - expected).max() <= (2 if dtype == np.uint8 else 1)


def png(samples: np.ndarray, bits: int, colour: int) -> bytes:
    """A PNG file by the specification, for what Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in samples.astype(f">u{bits // 8}"))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour_png(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(DEEP, 16, 2))
    assert np.array_equal(read_rgb(path), DEEP >> 8)
    path.write_bytes(png(np.dstack([DEEP, DEEP[..., :1]]), 16, 6))
    assert np.array_equal(read_rgb(path), DEEP >> 8)
    path.write_bytes(png(RGB.astype(np.uint16) * 257, 16, 2))
    assert np.array_equal(read_rgb(path), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(RGB)
    image.getexif()[274] = orientation
    upright = np.array(ImageOps.exif_transpose(image))
    assert upright.shape == (RGB.shape if orientation < 5 else (31, 20, 3))
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    assert np.array_equal(read_rgb(tmp_path / f"a.{suffix}"), upright)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "deep.tif", RGB * np.uint16(257), photometric="rgb", extratags=tag)
    assert np.array_equal(read_rgb(tmp_path / "deep.tif"), upright)


@pytest.mark.parametrize("suffix, settings", [("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_the_first_frame_of_an_animation(tmp_path, suffix, settings):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(255 - RGB)], **settings)
    assert np.array_equal(read_rgb(path), RGB)


def refusal(path) -> str:
    with pytest.raises(ValueError) as caught:
        read_rgb(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read image {path}: ") and message.endswith("; remove or replace it")
    assert "\n" not in message and " at 0x" not in message
    return message


@pytest.mark.parametrize("kept", [0, 1, 8, 40, 0.5, -1])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "deep.tif"])
def test_truncated_files(tmp_path, suffix, kept):
    path = tmp_path / f"a.{suffix}"
    if suffix == "deep.tif":
        tifffile.imwrite(path, DEEP, photometric="rgb")
    else:
        Image.fromarray(RGB).save(path)
    whole = path.read_bytes()
    if kept == -1 and suffix not in ("webp", "deep.tif"):
        kept = -40  # their last bytes hold no pixel
    path.write_bytes(whole[: int(len(whole) * kept) if kept == 0.5 else kept])
    refusal(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_flipped_bits_in_a_png_are_found(tmp_path):
    path = tmp_path / "a.png"
    smooth = np.cumsum(RGB % 3, axis=1).astype(np.uint8)
    whole = png(smooth, 8, 2)
    # The decoder has all its pixels before it comes to the check sum, so that damage near the end escapes it.
    for position in range(len(whole) - 80, len(whole) - 12):
        data = bytearray(whole)
        data[position] ^= 4
        path.write_bytes(data)
        refusal(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_raises_nothing_else(tmp_path):
    random = np.random.default_rng(3)
    for suffix in ("png", "jpg", "bmp", "webp", "tif", "deep.tif"):
        path = tmp_path / f"a.{suffix}"
        if suffix == "deep.tif":
            tifffile.imwrite(path, DEEP, photometric="rgb", compression="zlib")
        else:
            Image.fromarray(RGB).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[random.integers(len(whole), size=8)] = random.integers(256, size=8)
            path.write_bytes(damaged[: random.integers(1, len(whole) + 1)])
            try:
                assert read_rgb(path).dtype == np.uint8
            except ValueError as error:
                assert str(error).startswith(f"cannot read image {path}: ")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint32, np.int16])
@pytest.mark.parametrize("channels", [1, 3])
def test_float_and_other_samples_are_refused(tmp_path, dtype, channels):
    samples = DEEP[..., :channels].squeeze().astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb" if channels == 3 else "minisblack")
    assert "samples; expected 8 or 16 bits" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_by_size(tmp_path, side):
    path = tmp_path / "a.png"
    data = bytearray(png(RGB, 8, 2))
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    assert "decompression bomb" in refusal(path)


def test_missing_empty_foreign_and_disguised_files(tmp_path):
    assert "No such file" in refusal(tmp_path / "missing.png")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "empty" in refusal(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("not an image")
    assert "not a PNG" in refusal(tmp_path / "text.jpg")
    Image.fromarray(RGB).save(tmp_path / "disguised.eps")
    (tmp_path / "disguised.eps").rename(tmp_path / "disguised.png")
    refusal(tmp_path / "disguised.png")
    Image.fromarray(RGB).save(tmp_path / "is_png.jpg", format="png")
    assert np.array_equal(read_rgb(tmp_path / "is_png.jpg"), RGB)


def test_list_images(tmp_path):
    wanted = ["a/2.PNG", "a/b/1.jpeg", "a/b/3.Tif", "c.webp", "d.bmp", "e.JPG"]
    for name in [*wanted, "a/.hidden.png", ".cache/x.png", "notes.txt", "png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in list_images([tmp_path])] == wanted
    assert list_images(str(tmp_path)) == list_images(tmp_path) == list_images([tmp_path, tmp_path])
    assert [p.name for p in list_images([tmp_path / "a/b", tmp_path / "a"])] == ["1.jpeg", "3.Tif", "2.PNG"]


def test_what_is_passed_over_is_counted_in_a_line(tmp_path):
    for name in ("a/1.png", "a/2.HEIC", "a/b/3.heic", "a/4.psd", "a/README", "a/.hidden.heic", "c/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (line,) = passed_over([tmp_path / "a", tmp_path / "c", "skimage:coffee"])
    assert line.startswith(f"passed over in {tmp_path / 'a'}: 2 .heic, ") and "1 .psd" in line and "1 no suffix" in line
    for number in range(12):
        (tmp_path / f"c/x.y{number}").touch()
    assert passed_over(tmp_path / "c")[0].endswith(" and 4 more kinds")
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(ValueError, match="no images in .*/a; expected PNG, .*; passed over in .*/a: 2 .heic"):
        list_images(tmp_path / "a")


def test_list_images_follows_links_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/1.png").touch()
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "set/linked")
    os.symlink(tmp_path / "set", tmp_path / "set/loop")
    assert list_images(tmp_path / "set") == [tmp_path / "set/linked/1.png"]


def test_list_images_errors(tmp_path):
    (tmp_path / "file.png").touch()
    (tmp_path / "none").mkdir()
    for folders, words in [
        ([], "no folder given"),
        ([""], "the name of a folder is empty"),
        (["x" * 300], "x does not exist"),
        ([tmp_path / "missing"], "missing does not exist; expected a folder of images, check"),
        ([tmp_path, tmp_path / "none"], "no images in .*none; expected PNG"),
        ([tmp_path / "file.png"], "file.png is a file; expected a folder of images, use"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            list_images(folders)
        assert "\n" not in str(caught.value)
