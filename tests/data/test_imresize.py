"""MATLAB-style downscaling against golden vectors, the published bicubic rows, and a direct dense computation."""

import csv
from pathlib import Path

import numpy as np
import pytest
from torch.nn.functional import interpolate

from data.datasets import make_pair
from data.images import list_images, read_rgb
from data.imresize import imresize
from metrics.fidelity import psnr_y

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/imresize.npz"
SHARED = ROOT.parent / "shared"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_golden_vectors(scale):
    with np.load(GOLDEN) as golden:
        image, expected = golden["imresize_in"], golden[f"imresize_x{scale}"]
    assert np.abs(imresize(image, scale) - expected).max() < 1e-10
    assert np.abs(imresize(image[..., 1], scale) - expected[..., 1]).max() < 1e-10


def dense(signal: np.ndarray, scale: int) -> np.ndarray:
    """One axis as MATLAB's documentation has it: every output's weights over an explicitly padded signal."""

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    size, pad = len(signal), 4 * scale
    padded = np.pad(signal, [(pad, pad)] + [(0, 0)] * (signal.ndim - 1), mode="symmetric")
    out = []
    for i in range(size // scale):
        centre = (i + 0.5) * scale - 0.5
        weights = np.array([cubic((j - pad - centre) / scale) for j in range(len(padded))])
        out.append(np.tensordot(weights / weights.sum(), padded, 1))
    return np.array(out)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("blocks", [(1, 1), (1, 3), (2, 7), (5, 4)])
def test_any_scale_and_images_smaller_than_the_kernel(scale, blocks):
    image = np.random.default_rng(scale).random((blocks[0] * scale, blocks[1] * scale, 3))
    expected = dense(dense(image, scale).swapaxes(0, 1), scale).swapaxes(0, 1)
    assert np.abs(imresize(image, scale) - expected).max() < 1e-12


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_flips_transposition_and_constants(scale):
    image = np.random.default_rng(0).random((12 * scale, 17 * scale))
    small = imresize(image, scale)
    assert np.allclose(imresize(image[::-1], scale), small[::-1], atol=1e-14)
    assert np.allclose(imresize(image.T, scale), small.T, atol=1e-14)
    assert np.allclose(imresize(np.full_like(image, 0.7), scale), 0.7, atol=1e-14)


def test_large_images_are_computed_in_pieces_without_seams():
    image = np.random.default_rng(1).random((96, 6000))
    small = imresize(image, 4)
    assert np.array_equal(small[4:-4, 400:600], imresize(image[:, 1600 - 32 : 2400 + 32], 4)[4:-4, 8:-8])


def test_the_input_is_left_alone_and_the_output_is_its_own():
    image = np.random.default_rng(2).random((8, 8, 3))
    before = image.copy()
    imresize(image, 1)[:] = 5
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "shape, scale, words",
    [
        ((7, 8, 3), 2, "image size 7x8 is not divisible by scale=2; crop it to 6x8"),
        ((8, 8, 3), 0, "scale=0 is not an integer >= 1"),
        ((8, 8, 3), 1.5, "scale=1.5 is not an integer >= 1"),
        ((8,), 2, "image has shape"),
        ((0, 8, 3), 2, "image has shape"),
    ],
)
def test_errors(shape, scale, words):
    with pytest.raises(ValueError, match=words) as caught:
        imresize(np.zeros(shape), scale)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_bicubic_rows_of_table_1(name, scale):
    folder, table = SHARED / "datasets" / name, SHARED / "reference/table1.csv"
    if not folder.is_dir() or not table.is_file():
        pytest.skip(f"needs {name} and the paper's table in ../shared")
    with table.open() as file:
        row = next(r for r in csv.DictReader(file) if r["scale"] == str(scale) and r["model"] == "bicubic")
    scores = []
    for path in list_images(folder):
        lr, hr = make_pair(read_rgb(path), scale, multiple=12)
        sr = interpolate(lr[None], size=hr.shape[-2:], mode="bicubic", align_corners=False)
        scores.append(psnr_y(sr.clamp(-1, 1), hr[None]).item())
    assert f"{np.mean(scores):.4f}" == row[f"{name}_PSNR"]
