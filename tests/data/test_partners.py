"""Which LR, and which finished SR image, belongs to which HR image: place before name, and no guesses."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import PairedDataset, match_sr
from data.partners import find_lr_among_hr, match, rooted


def save(path: Path, height: int = 8, width: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    return path


def partners(folder: Path, hr: list[str], lr: list[str], scale: int = 4, template: str | None = None) -> dict[str, str]:
    """`match` by names below folder."""
    hr, lr = (rooted([folder / name for name in names]) for names in (hr, lr))
    found = match(hr, lr, scale, template)
    return {x.relative_to(folder).as_posix(): y.relative_to(folder).as_posix() for x, y in found.items()}


def test_its_own_root_comes_before_a_better_name_elsewhere(tmp_path):
    """A leftover of the same stem in another root is none of its business."""
    for name in ("HR1/0001", "LR1/0001x4", "HR2/0002", "LR2/0002", "LR2/0001"):
        save(tmp_path / f"{name}.png")
    found = partners(tmp_path, ["HR1", "HR2"], ["LR1", "LR2"])
    assert found == {"HR1/0001.png": "LR1/0001x4.png", "HR2/0002.png": "LR2/0002.png"}


def test_its_own_sub_folder_comes_before_a_better_name_elsewhere(tmp_path):
    for name in ("hr/day/7", "lr/day/7_LR", "hr/night/8", "lr/night/8", "lr/night/7"):
        save(tmp_path / f"{name}.png")
    found = partners(tmp_path, ["hr"], ["lr"])
    assert found == {"hr/day/7.png": "lr/day/7_LR.png", "hr/night/8.png": "lr/night/8.png"}
    (tmp_path / "lr/day/7_LR.png").rename(tmp_path / "lr/day/other.png")
    assert partners(tmp_path, ["hr"], ["lr"]) == {"hr/night/8.png": "lr/night/8.png"}  # not night's


def test_hr_folders_may_share_stems(tmp_path):
    for letter in "abc":
        for number in (1, 2):
            save(tmp_path / f"{letter}/{number}.png")
            save(tmp_path / f"{letter}_lr/{number}_x3.png")
    found = partners(tmp_path, list("abc"), ["a_lr", "b_lr", "c_lr"], scale=3)
    assert found == {f"{x}/{n}.png": f"{x}_lr/{n}_x3.png" for x in "abc" for n in (1, 2)}


def test_one_lr_root_serves_several_hr_roots(tmp_path):
    for name in ("a/1", "b/2", "lr/1x4", "lr/deep/2x4"):
        save(tmp_path / f"{name}.png")
    assert partners(tmp_path, ["a", "b"], ["lr"]) == {"a/1.png": "lr/1x4.png"}  # lr's own folder is b's place too
    (tmp_path / "lr/1x4.png").rename(tmp_path / "lr/deep/1x4.png")
    assert partners(tmp_path, ["a", "b"], ["lr"]) == {"a/1.png": "lr/deep/1x4.png", "b/2.png": "lr/deep/2x4.png"}
    save(tmp_path / "b/1.png")
    with pytest.raises(ValueError, match="b/1.png and .*a/1.png share the LR partner .*lr/deep/1x4.png; expected two"):
        partners(tmp_path, ["a", "b"], ["lr"])


@pytest.mark.parametrize(
    "hr, lr",
    [
        ("0801", "0801"),
        ("0801", "0801x4"),
        ("0801", "0801X4"),
        ("0801", "0801_x4"),
        ("0801", "0801-x4"),
        ("0801", "0801_4x"),
        ("0801", "0801x4w2"),
        ("img_3", "img_3_LR"),
        ("img_3", "img_3_lr"),
        ("img_3", "img_3_LRBI_x4"),
        ("img_3", "img_3_LRBIx4"),
        ("img_3", "img_3_LR4"),
        ("img_3", "img_3_bicubic"),
        ("Canon_01_HR", "Canon_01_LR4"),
        ("Canon_01_HR", "Canon_01"),
        ("scene_x1", "scene_x4"),
        ("img_001_SRF_4_HR", "img_001_SRF_4_LR"),
        ("IMG_7", "img_7x4"),
        ("baby_gt", "BABY_LQ"),
    ],
)
def test_usual_forms(tmp_path, hr, lr):
    save(tmp_path / f"hr/{hr}.png")
    save(tmp_path / f"lr/{lr}.png")
    assert partners(tmp_path, ["hr"], ["lr"]) == {f"hr/{hr}.png": f"lr/{lr}.png"}


@pytest.mark.parametrize("hr, lr", [("0801", "0801x2"), ("0801", "08011"), ("1", "1_b"), ("0801", "801"), ("box", "b")])
def test_other_names_are_others(tmp_path, hr, lr):
    save(tmp_path / f"hr/{hr}.png")
    save(tmp_path / f"lr/{lr}.png")
    assert partners(tmp_path, ["hr"], ["lr"]) == {}


def test_stems_that_differ_in_case_alone(tmp_path):
    for name in ("hr/a", "hr/A", "lr/a", "lr/A"):
        save(tmp_path / f"{name}.png")
    if len(list((tmp_path / "hr").iterdir())) == 2:  # not on a disk that knows no case
        assert partners(tmp_path, ["hr"], ["lr"]) == {"hr/a.png": "lr/a.png", "hr/A.png": "lr/A.png"}


def test_a_stem_that_ends_like_a_mark_is_its_own(tmp_path):
    for name in ("hr/zoom", "hr/zoom_x4", "lr/zoom", "lr/zoom_x4"):
        save(tmp_path / f"{name}.png")
    assert partners(tmp_path, ["hr"], ["lr"]) == {"hr/zoom.png": "lr/zoom.png", "hr/zoom_x4.png": "lr/zoom_x4.png"}


@pytest.mark.parametrize("first, second", [("5.png", "5x4.png"), ("5_LR.png", "5x4.bmp"), ("5.png", "5.bmp")])
def test_two_candidates_are_an_error_that_names_both(tmp_path, first, second):
    for name in ("hr/5.png", f"lr/{first}", f"lr/{second}"):
        save(tmp_path / name)
    with pytest.raises(ValueError, match="hr/5.png has two LR partners") as caught:
        partners(tmp_path, ["hr"], ["lr"])
    assert first in str(caught.value) and second in str(caught.value) and "\n" not in str(caught.value)


def test_folders_named_for_a_scale(tmp_path):
    """DIV2K's own layout, with and without the scale in the names, and beside other scales."""
    save(tmp_path / "hr/0001.png")
    for scale in (2, 3, 4):
        save(tmp_path / f"bicubic/X{scale}/0001x{scale}.png")
        save(tmp_path / f"plain/x{scale}/0001.png")
        save(tmp_path / f"benchmark/LR_bicubic/X{scale}/0001x{scale}.png")
    for scale in (2, 3, 4):
        assert partners(tmp_path, ["hr"], ["bicubic"], scale) == {"hr/0001.png": f"bicubic/X{scale}/0001x{scale}.png"}
        assert partners(tmp_path, ["hr"], ["plain"], scale) == {"hr/0001.png": f"plain/x{scale}/0001.png"}
        (found,) = partners(tmp_path, ["hr"], ["benchmark"], scale).values()
        assert found == f"benchmark/LR_bicubic/X{scale}/0001x{scale}.png"


def test_a_template_where_nothing_fits(tmp_path):
    for name in ("hr/9", "lr/small-9-q", "lr/9x4"):
        save(tmp_path / f"{name}.png")
    assert partners(tmp_path, ["hr"], ["lr"], template="small-{}-q") == {"hr/9.png": "lr/small-9-q.png"}
    assert partners(tmp_path, ["hr"], ["lr"], template="{}_none") == {}
    with pytest.raises(ValueError, match=r"9.png has no LR partner; expected 9_none in .*/lr, add or remove it$"):
        PairedDataset(tmp_path / "hr", 4, 4, lr_folders=tmp_path / "lr", lr_template="{}_none")


def test_a_missing_partner_says_where_it_was_looked_for(tmp_path):
    for name in ("one/1", "two/2", "lr_one/1", "lr_two/3", "lr_one/2"):
        save(tmp_path / f"{name}.png", *((4, 4) if "lr" in name else (8, 8)))
    words = "two/2.png has no LR partner; expected 2, 2x2, 2_LR or the like in .*/lr_two, add .*--lr-template"
    with pytest.raises(ValueError, match=words):
        PairedDataset([tmp_path / "one", tmp_path / "two"], 2, 2, lr_folders=[tmp_path / "lr_one", tmp_path / "lr_two"])


# --- LR and HR in one folder ---


@pytest.mark.parametrize("lr, factor", [("set/LR/0001x4.png", 4), ("set/sub/0001.png", 2), ("set/0001_LR.png", 3)])
def test_lr_images_among_hr_are_said(tmp_path, lr, factor):
    save(tmp_path / "set/HR/0001.png", 48, 36)
    save(tmp_path / "set/HR/0002.png", 36, 36)
    save(tmp_path / lr, 48 // factor, 36 // factor)
    pairs = PairedDataset(tmp_path / "set", 4, 4)
    (note,) = (note for note in pairs.notes if "LR among HR" in note)
    assert lr.split("/")[-1] in note and "HR/0001.png (48x36)" in note and "\n" not in note


def test_equal_stems_of_other_sizes_are_no_lr(tmp_path):
    for name, size in (("a/1", (48, 36)), ("b/1", (24, 20)), ("c/1", (48, 36)), ("a/2", (12, 9))):
        save(tmp_path / f"set/{name}.png", *size)
    assert PairedDataset(tmp_path / "set", 3, 3).notes == []


def test_many_equal_stems_are_compared_quickly():
    sizes = {Path(f"{n}/frame.png"): (1000 + n, 1000) for n in range(20_000)}
    assert find_lr_among_hr(sizes) is None


# --- finished images ---


@pytest.mark.parametrize(
    "name",
    ["baby", "baby_x4", "babyx4", "Baby_SR", "baby_HAT_SRx4", "baby_x4_SR", "baby-out", "baby_rlt", "baby.restored"],
)
def test_finished_images_are_found(tmp_path, name):
    hr, sr = save(tmp_path / "hr/baby.png"), save(tmp_path / f"sr/{name}.png")
    save(tmp_path / "hr/bird.png")
    assert match_sr(tmp_path / "hr", tmp_path / "sr", 4) == {hr: sr}


def test_the_longest_stem_has_the_finished_image(tmp_path):
    names = {"img_1": "img_1_HAT", "img_1_b": "img_1_b_HAT", "img_10": "img_10_HAT"}
    pairs = {save(tmp_path / f"hr/{x}.png"): save(tmp_path / f"sr/{y}.png") for x, y in names.items()}
    assert match_sr(tmp_path / "hr", tmp_path / "sr", 4) == pairs


def test_lr_and_hr_beside_finished_images_are_left_out(tmp_path):
    """As EDSR's test program saves them."""
    hr = save(tmp_path / "hr/baby.png")
    sr = save(tmp_path / "sr/baby_x4_SR.png")
    for name in ("baby_x4_LR", "baby_x4_HR", "baby_LRBI_x4"):
        save(tmp_path / f"sr/{name}.png")
    assert match_sr([tmp_path / "hr"], [tmp_path / "sr"], 4) == {hr: sr}


def test_finished_images_of_two_methods_are_an_error(tmp_path):
    save(tmp_path / "hr/baby.png")
    save(tmp_path / "sr/baby_HAT.png")
    save(tmp_path / "sr/baby_EDSR.png")
    with pytest.raises(ValueError, match="baby.png has two SR partners, .*baby_EDSR.png and .*baby_HAT.png"):
        match_sr(tmp_path / "hr", tmp_path / "sr", 4)


def test_finished_images_of_hr_with_a_mark(tmp_path):
    hr = save(tmp_path / "hr/img_001_SRF_4_HR.png")
    sr = save(tmp_path / "sr/Set5/img_001_RCAN.png")
    assert match_sr(tmp_path / "hr", tmp_path / "sr", 4) == {hr: sr}


def test_errors_are_one_line(tmp_path):
    save(tmp_path / "hr/baby.png")
    with pytest.raises(ValueError, match=re.escape(f"folder {tmp_path}/sr does not exist")):
        match_sr(tmp_path / "hr", tmp_path / "sr", 4)
