"""python -m data.prepare: sub-images that are the parts they say, a report that is right, one line where input is bad."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import PairedDataset, imresize, prepare
from data.images import read_rgb

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Photographs of three sizes in the folder `raw`, where the tests then are."""
    monkeypatch.chdir(tmp_path)
    for number, size in enumerate([(64, 100), (48, 48), (75, 61)]):
        pixels = np.random.default_rng(number).integers(256, size=(*size, 3), dtype=np.uint8)
        Path("raw/sub").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(f"raw/{'sub/' * (number == 2)}{number}.png")
    return tmp_path


def run(capsys, *words, code: int = 0) -> str:
    if code:
        with pytest.raises(SystemExit) as caught:
            prepare.main([str(word) for word in words])
        assert caught.value.code == code
    else:
        prepare.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return err if code == 2 else out


@pytest.mark.parametrize(
    "length, size, step, multiple", [(100, 48, 24, 12), (48, 48, 24, 4), (30, 48, 24, 2), (97, 32, 16, 4)]
)
def test_starts_cover_the_side(length, size, step, multiple):
    found = prepare.starts(length, size, step, multiple)
    assert found[0] == 0 and found == sorted(set(found)) and all(x % multiple == 0 for x in found)
    assert all(b - a <= step for a, b in zip(found, found[1:]))
    assert length < size or length - multiple < found[-1] + size <= length


@pytest.mark.parametrize("scale, size, step", [(2, 32, 16), (3, 24, 24), (4, 40, 20)])
def test_sub_images_and_their_lr(place, capsys, scale, size, step):
    words = ["--input", "raw", "--output", "hr", "--size", size, "--step", step, "--scale", scale, "--lr-output", "lr"]
    run(capsys, *words)
    cut = sorted(Path("hr").rglob("*.png"))
    covered = {path: np.zeros(read_rgb(path).shape[:2], bool) for path in Path("raw").rglob("*.png")}
    for path in cut:
        stem, number = re.fullmatch(r"(.*)_s(\d{3})", path.stem).groups()
        (source,) = Path("raw").rglob(f"{stem}.png")
        whole, part = read_rgb(source), read_rgb(path)
        whole = whole[: whole.shape[0] // scale * scale, : whole.shape[1] // scale * scale]
        corners = [
            (top, left)
            for top in prepare.starts(whole.shape[0], size, step, scale)
            for left in prepare.starts(whole.shape[1], size, step, scale)
        ]
        top, left = corners[int(number) - 1]
        assert part.shape == (size, size, 3) and np.array_equal(part, whole[top : top + size, left : left + size])
        covered[source][top : top + size, left : left + size] = True
        lr = np.rint(imresize(whole, scale)).clip(0, 255)[top // scale :, left // scale :]
        found = read_rgb(Path("lr", f"{path.stem}x{scale}.png"))
        assert np.array_equal(found, lr[: size // scale, : size // scale])
    for mask in covered.values():
        assert mask[: len(mask) // scale * scale, : mask.shape[1] // scale * scale].all()
    assert len(PairedDataset("hr", scale, scale, lr_folders="lr")) == len(cut) > 10


def test_whole_images_degraded(place, capsys):
    words = ["--input", "raw", "--size", "0", "--scale", "4", "--degradation", "blur-noise-jpeg"]
    for output in ("a", "b"):
        out = run(capsys, *words, "--output", f"{output}/hr", "--lr-output", f"{output}/lr")
    assert {path.name for path in Path("a/lr").iterdir()} == {"0x4.png", "1x4.png", "2x4.png"}
    for path in Path("a").rglob("*.png"):
        assert path.read_bytes() == Path("b", *path.parts[1:]).read_bytes()
    assert read_rgb("a/lr/0x4.png").shape == (16, 25, 3) and "their LR, 1/4 by blur-noise-jpeg, to b/lr" in out
    different = PairedDataset("a/hr", 4, 4, lr_folders="a/lr")[0][0] - PairedDataset("a/hr", 4, 4)[0][0]
    assert different.abs().mean() > 0.01


def test_the_report(place, capsys):
    before = sorted(Path().rglob("*"))
    out = run(capsys, "--input", "raw", "--size", "60")
    assert "images      3, " in out and "damaged     none" in out and "duplicates  none" in out
    assert "sizes       smallest 48x48, median 75x61, largest 64x100 (height x width)" in out
    assert "below 60    1\n            raw/1.png (48x48)" in out
    assert sorted(Path().rglob("*")) == before
    Image.open("raw/0.png").save("raw/copy.bmp")
    Path("raw/sub/0.jpg").write_bytes(b"no image")
    Path("raw/photo.heic").touch()
    Image.new("RGB", (25, 16)).save("raw/0x4.png")
    out = run(capsys, "--input", "raw", code=1)
    assert "damaged      1\n             cannot read image raw/sub/0.jpg: not a PNG" in out
    assert "duplicates   1\n             raw/0.png = raw/copy.bmp" in out
    assert "names        1\n             0 stands for 2 files" in out
    assert "LR among HR  1\n             raw/0x4.png (16x25) and raw/0.png (64x100): name the folder of HR alone" in out
    assert "passed over  1\n             in raw: 1 .heic" in out
    run(capsys, "--input", "raw", "--output", "out", "--size", "24", "--step", "24", code=1)
    assert not list(Path("out").rglob("0.jpg*")) and len(list(Path("out").rglob("*.png"))) > 10


def test_many_findings_are_cut_short(place, capsys):
    for number in range(9):
        Path(f"raw/bad{number}.png").write_bytes(b"")
    out = run(capsys, "--input", "raw", code=1)
    assert "damaged     9\n" in out and "and 4 more" in out and out.count("the file is empty") == 5


def test_the_next_command_trains(place, capsys, monkeypatch):
    import train

    out = run(
        capsys,
        "--input",
        "raw",
        "--output",
        "my hr",
        "--size",
        "48",
        "--step",
        "24",
        "--scale",
        "2",
        "--lr-output",
        "lr",
    )
    (command,) = re.findall("next: python (.*)", out)
    assert (
        command
        == f"{ROOT / 'train.py'} --trainpath 'my hr' --lrpath lr --scale 2 --patch 48 --batchsize 16 --valpath DIR"
    )
    monkeypatch.chdir(ROOT)
    assert prepare.next_command(prepare.parse(["--input", "x"])).startswith("python train.py --trainpath x --patch 192")
    assert train.__file__ == str(ROOT / "train.py")


@pytest.mark.parametrize(
    "words, expected",
    [
        ("--input nowhere", "folder nowhere does not exist"),
        ("--input raw/0.png", "raw/0.png is a file; expected a folder"),
        ("--input raw --size 50", "--size 50: expected a multiple of 12, such as 48"),
        ("--input raw --size -12", "--size -12: expected a multiple of 12"),
        ("--input raw --size 99996", "--size 99996: expected"),
        ("--input raw --step 0", "--step 0: expected a multiple of 12, such as 12"),
        ("--input raw --step 6 --scale 4", "--step 6: expected a multiple of 4, such as 4"),
        ("--input raw --scale 5", "--scale"),
        ("--input raw --output raw", "raw exists already; expected a new folder"),
        ("--input raw --output raw/cut", "raw/cut is inside --input"),
        ("--input raw --lr-output lr", "--lr-output lr: expected --scale and --output beside it"),
        ("--input raw --output x --scale 4 --lr-output x", "--lr-output x: expected another folder"),
        ("--input raw --output x --degradation blur-noise-jpeg", "--degradation blur-noise-jpeg: expected --lr-output"),
        ("--input raw --degradation blur", "invalid choice: 'blur'"),
        ("--input raw --seed -1", "--seed -1"),
        ("", "the following arguments are required: --input"),
        ("--input raw --sizes 4", "unrecognized arguments: --sizes 4"),
    ],
)
def test_bad_input(place, capsys, words, expected):
    before = sorted(Path().rglob("*"))
    line = run(capsys, *words.split(), code=2)
    assert line.startswith("data.prepare: error: ") and line.count("\n") == 1 and expected in line
    assert sorted(Path().rglob("*")) == before


def test_as_a_command_and_on_a_full_disk(place):
    """Not half an image is left."""
    command = [
        sys.executable,
        "-m",
        "data.prepare",
        "--input",
        "raw",
        "--output",
        "out",
        "--size",
        "24",
        "--step",
        "12",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    limited = ["bash", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "_", *command]
    done = subprocess.run(limited, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("data.prepare: error: ")
    left = [path for path in Path("out").rglob("*") if path.is_file()]
    assert all(Image.open(path).load() for path in left) and not list(Path("out").rglob("*.tmp"))
