"""Where enlarged images go."""

from pathlib import Path

import pytest
from PIL import Image

from data.targets import choose_targets


@pytest.fixture
def photos(workplace):
    for name in (
        "photos/a.png",
        "photos/sub/b.JPG",
        "photos/sub/c.gif",
        "photos/.hidden/d.png",
        "other/a.png",
        "e.tif",
    ):
        path = workplace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(path)
    (workplace / "photos" / "notes.txt").write_text("no image")
    return workplace


def paths(*args, **kwargs) -> dict[str, str]:
    return {str(target.source): str(target.path) for target in choose_targets(*args, **kwargs)}


def test_beside_the_input(photos):
    expected = {
        "photos/a.png": "photos_x4/a.png",
        "photos/sub/b.JPG": "photos_x4/sub/b.png",
        "photos/sub/c.gif": "photos_x4/sub/c.png",
        "e.tif": "e_x4.png",
    }
    assert paths(["photos", "e.tif"], "_x4") == expected
    assert paths(["photos/"], "_x4") == paths(["photos"], "_x4")


@pytest.mark.parametrize("name", [".", "./", "../photos", str(Path("..") / "photos" / "sub" / "..")])
def test_folders_by_odd_names(photos, monkeypatch, name):
    monkeypatch.chdir(photos / "photos")
    found = [Path(path).resolve() for path in paths([name], "_x4").values()]
    assert found == [photos / "photos_x4" / below for below in ("a.png", "sub/b.png", "sub/c.png")]


def test_below_an_output(photos):
    assert list(paths(["photos", "e.tif"], "_x4", "sr").values()) == [
        "sr/a.png",
        "sr/sub/b.png",
        "sr/sub/c.png",
        "sr/e.png",
    ]
    assert list(paths(["photos", "other"], "_x4", "sr").values())[::3] == ["sr/photos/a.png", "sr/other/a.png"]
    assert list(paths(["photos"], "_new", "sr", renamed=True).values())[0] == "sr/a_new.png"
    assert list(paths(["skimage:coffee"], "_x4", "sr").values()) == ["sr/coffee.png"]


def test_formats(photos):
    expected = {"photos/a.png": "o/a.png", "photos/sub/b.JPG": "o/sub/b.JPG", "photos/sub/c.gif": "o/sub/c.png"}
    assert paths(["photos"], "_x4", "o", "same") == expected
    assert [target.kind for target in choose_targets(["photos"], "_x4", "o", "same")] == ["png", "jpg", "png"]
    assert paths(["e.tif"], "_x4", kind="tiff") == {"e.tif": "e_x4.tiff"}
    assert paths(["e.tif"], "_x4", kind="same") == {"e.tif": "e_x4.tif"}


def test_an_image_once(photos):
    assert len(paths(["photos", "photos/a.png", "./photos/a.png"], "_x4", "o")) == 3


def test_what_was_written_before_is_not_enlarged_again(photos):
    Image.new("RGB", (3, 2)).save(photos / "e_x4.png")
    Image.new("RGB", (3, 2)).save(photos / "photos" / "a_x4.png")
    assert paths(["e.tif", "e_x4.png"], "_x4") == {"e.tif": "e_x4.png"}
    assert list(paths(["photos"], "_x4", "photos", renamed=True)) == [
        "photos/a.png",
        "photos/sub/b.JPG",
        "photos/sub/c.gif",
    ]
    (photos / "photos" / "out").mkdir()
    Image.new("RGB", (3, 2)).save(photos / "photos" / "out" / "a.png")
    assert len(paths(["photos"], "_x4", "photos/out")) == 4  # a_x4 is an image like others there


@pytest.mark.parametrize(
    "inputs, options, words",
    [
        (["none"], {}, "--input none: no such file or folder"),
        (["photos/a.png", "other/a.png"], {"output": "o"}, "would both be written to o/a.png; rename one"),
        (["photos"], {"output": "photos"}, "photos/a.png would be written over; name another --output"),
        (["e.tif"], {"suffix": "", "kind": "same"}, "e.tif would be written over"),
        (["photos"], {"suffix": ""}, "--suffix '': expected some letters"),
        (["/"], {}, "no name of its own"),
        (["skimage:coffee"], {}, "expected --output too"),
        (["empty"], {}, "no images in empty"),
    ],
)
def test_what_cannot_be(photos, inputs, options, words):
    (photos / "empty").mkdir()
    with pytest.raises(ValueError) as error:
        choose_targets(inputs, **{"suffix": "_x4"} | options)
    assert words in str(error.value) and "\n" not in str(error.value)
