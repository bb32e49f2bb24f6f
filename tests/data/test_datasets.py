"""PairedDataset, patches and batches: values, matching of files, and determinism."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data import PairedDataset, PatchDataset, ResumableBatchSampler, datasets, make_pair, progress
from data.images import read_rgb
from data.imresize import imresize

SIZES = [(50, 61), (37, 48), (64, 40)]


def save(path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng([seed, *size]).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for number, size in enumerate(SIZES):
        save(tmp_path / f"hr/{number}.png", size)
    return tmp_path / "hr"


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scale, multiple", [(2, 2), (3, 12), (4, 12), (1, 5)])
@pytest.mark.parametrize("round_lr", [False, True])
def test_make_pair(scale, multiple, round_lr):
    rgb = np.random.default_rng(0).integers(0, 256, (40, 53, 3), dtype=np.uint8)
    rgb[:20, :24], rgb[:20, 24:] = 0, 255  # an edge between the extremes, so that bicubic overshoots
    lr, hr = make_pair(rgb, scale, multiple, round_lr)
    height, width = 40 // multiple * multiple, 53 // multiple * multiple
    assert hr.shape == (3, height, width) and lr.shape == (3, height // scale, width // scale)
    assert hr.dtype == lr.dtype == torch.float32 and hr.is_contiguous() and lr.is_contiguous()
    cropped = rgb[:height, :width] / 255
    small = imresize(cropped, scale)
    if round_lr:
        small = np.round(np.clip(small, 0, 1) * 255) / 255
    for got, expected in ((hr, cropped), (lr, small)):
        assert np.array_equal(got.numpy(), (expected * 2 - 1).astype(np.float32).transpose(2, 0, 1))
    assert (lr.abs().max() > 1) == (not round_lr and scale > 1)


def test_make_pair_errors():
    rgb = np.zeros((11, 40, 3), np.uint8)
    with pytest.raises(
        ValueError,
        match="image is 11x40, smaller than 12x12, the smallest image that can be cropped to multiples of 12; remove it",
    ):
        make_pair(rgb, 4, 12)
    with pytest.raises(ValueError, match="multiple=10 is not divisible by scale=4; use 8 or 12"):
        make_pair(rgb, 4, 10)


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 2 << 30])
@pytest.mark.parametrize("round_lr", [False, True])
def test_pairs_equal_make_pair_whatever_is_cached(folder, cache_bytes, round_lr, monkeypatch, capsys):
    pairs = PairedDataset([folder], 4, 12, round_lr=round_lr, cache_bytes=cache_bytes)
    assert capsys.readouterr().err == ""  # no bar where there is no terminal
    assert len(pairs) == 3 and pairs.names == ["0", "1", "2"] and pairs.sizes == [(48, 60), (36, 48), (60, 36)]
    decoded = []
    monkeypatch.setattr(datasets, "read_rgb", lambda path: decoded.append(path) or read_rgb(path))
    for index, path in enumerate(pairs.paths):
        assert equal(pairs[index], make_pair(read_rgb(path), 4, 12, round_lr))
    assert len(decoded) == {0: 3, 20_000: 1, 2 << 30: 0}[cache_bytes]


def test_pairs_name_the_first_bad_file(folder):
    data = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot read image .*1.png: .*; remove or replace it"):
        PairedDataset(folder, 4, 12)
    save(folder / "1.png", (11, 40))
    with pytest.raises(ValueError, match="1.png is 11x40, smaller than 12x12"):
        PairedDataset(folder, 4, 12)
    with pytest.raises(ValueError, match="multiple=3 is not divisible by scale=4; use 4"):
        PairedDataset(folder, 4, 3)


def bad_folders(folder, tmp_path):
    """PairedDataset with files of every kind of trouble: the good images' numbers and what is said of each of the others."""
    cut = (folder / "1.png").read_bytes()[:200]
    for number in range(3, 9):
        save(folder / f"{number}.png", (40, 48))
    for number in (0, 1, 2, 3, 4, 5, 6, 8):
        save_lr(folder / f"{number}.png", tmp_path / f"lr/{number}.png", 4)
    (folder / "1.png").write_bytes(cut)
    save(folder / "3.png", (11, 40))
    (folder / "4.png").write_text("no image")
    save(tmp_path / "lr/5.png", (9, 12))
    (tmp_path / "lr/6.png").write_bytes(cut)
    return ["0", "2", "8"], {
        "1": "hr/1.png: ",
        "3": "3.png is 11x40, smaller than 12x12",
        "4": "hr/4.png: not a PNG",
        "5": "lr/5.png, LR partner of .*hr/5.png, is 9x12; expected 10x12",
        "6": "cannot read image .*lr/6.png: ",
        "7": "hr/7.png has no LR partner; expected 7, 7x4, 7_LR or the like in ",
    }


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 2 << 30])
def test_bad_images_are_skipped_and_named(folder, tmp_path, cache_bytes):
    good, bad = bad_folders(folder, tmp_path)
    settings = dict(lr_folders=tmp_path / "lr", cache_bytes=cache_bytes)
    pairs = PairedDataset(folder, 4, 12, **settings, bad_images="skip")
    assert pairs.names == [path.stem for path in pairs.paths] == good and len(pairs) == len(pairs.sizes) == 3
    assert {path.stem for path in pairs.skipped} == set(bad) and all(path.is_file() for path in pairs.skipped)
    for path, reason in pairs.skipped.items():
        assert re.search(bad[path.stem], reason) and "\n" not in reason
    for number in bad:  # what is left is what a folder without them gives
        (folder / f"{number}.png").unlink()
    clean = PairedDataset(folder, 4, 12, **settings)
    assert clean.paths == pairs.paths and clean.sizes == pairs.sizes and clean.skipped == {}
    assert all(equal(a, b) for a, b in zip(pairs, clean, strict=True))


def test_bad_images_stop_where_they_are_not_skipped(folder, tmp_path):
    good, bad = bad_folders(folder, tmp_path)
    for bad_images in ("stop", "skip"):
        for number in (*good, *bad):
            for other in folder.parent.glob("alone/*"):
                other.unlink()
            (tmp_path / "alone").mkdir(exist_ok=True)
            (tmp_path / "alone" / f"{number}.png").write_bytes((folder / f"{number}.png").read_bytes())
            settings = dict(lr_folders=tmp_path / "lr", bad_images=bad_images)
            if number in good:
                assert PairedDataset(tmp_path / "alone", 4, 12, **settings).skipped == {}
                continue
            words = "all of 1 images are bad, the first: .*" if bad_images == "skip" else ""
            with pytest.raises(ValueError, match=f"^{words}") as caught:
                PairedDataset(tmp_path / "alone", 4, 12, **settings)
            assert re.search(bad[number].replace("hr/", "alone/"), str(caught.value))
    with pytest.raises(ValueError, match="bad_images=ignore; expected stop or skip"):
        PairedDataset(folder, 4, 12, bad_images="ignore")


def test_an_image_that_changes_its_size_in_the_meantime(folder):
    pairs = PairedDataset(folder, 4, 12, cache_bytes=0)
    save(folder / "1.png", (64, 64))
    with pytest.raises(ValueError, match="1.png has changed; expected images not to change"):
        pairs[1]


def test_names_are_unique(tmp_path):
    for name in ("one/a.png", "one/sub/b.png", "one/b.png", "one/c.png", "one/c.bmp", "two/b.png"):
        save(tmp_path / name, (8, 8))
    pairs = PairedDataset([tmp_path / "one", tmp_path / "two"], 2, 2)
    root = tmp_path.as_posix()
    expected = [f"{root}/one/b", f"{root}/one/c.bmp", f"{root}/one/c.png", "a", "sub/b", f"{root}/two/b"]
    assert sorted(pairs.names) == sorted(expected)
    assert pairs.names[[p.name for p in pairs.paths].index("a.png")] == "a"


def save_lr(hr_path, lr_path, scale):
    rgb = read_rgb(hr_path)
    height, width = (x // scale for x in rgb.shape[:2])
    return save(lr_path, (height, width), seed=1)


@pytest.mark.parametrize("cache_bytes", [0, 2 << 30])
@pytest.mark.parametrize("suffix", ["", "x4"])
def test_lr_files_are_taken_as_they_are(folder, tmp_path, suffix, cache_bytes):
    for number in range(3):
        save_lr(folder / f"{number}.png", tmp_path / f"lr/X4/{number}{suffix}.png", 4)
        save(tmp_path / f"lr/X2/{number}x2.png", (5, 5))
    pairs = PairedDataset(folder, 4, 12, lr_folders=tmp_path / "lr", cache_bytes=cache_bytes)
    for number, (height, width) in enumerate(pairs.sizes):
        lr, hr = pairs[number]
        given = read_rgb(tmp_path / f"lr/X4/{number}{suffix}.png")[: height // 4, : width // 4]
        assert np.array_equal(lr.numpy(), (given / 255 * 2 - 1).astype(np.float32).transpose(2, 0, 1))
        assert equal([hr], [make_pair(read_rgb(pairs.paths[number]), 4, 12)[1]])


def test_lr_matching_where_stems_collide(tmp_path):
    for below in ("one/s/a", "one/t/a", "two/s/a"):
        save(tmp_path / f"{below}.png", (16, 16))
        save(tmp_path / f"lr_{below}.png", (8, 8), seed=len(below) + ord(below[0]) + ord(below[4]))
    roots = [[tmp_path / f"{prefix}{x}" for x in ("one", "two")] for prefix in ("", "lr_")]
    pairs = PairedDataset(roots[0], 2, 2, lr_folders=roots[1])
    for path, (lr, _) in zip(pairs.paths, pairs):
        given = read_rgb(tmp_path / f"lr_{path.relative_to(tmp_path).as_posix()}")
        assert np.array_equal(lr.numpy(), (given / 255 * 2 - 1).astype(np.float32).transpose(2, 0, 1))
    (tmp_path / "lr_two/s/a.png").rename(tmp_path / "lr_two/s/b.png")
    with pytest.raises(ValueError, match="two/s/a.png has no LR partner"):
        PairedDataset(roots[0], 2, 2, lr_folders=roots[1])


def test_lr_errors(folder, tmp_path):
    for number in (0, 2):
        save_lr(folder / f"{number}.png", tmp_path / f"lr/{number}x4.png", 4)
    with pytest.raises(
        ValueError,
        match="1.png has no LR partner; expected 1, 1x4, 1_LR or the like in .*/lr, add or remove it, or say",
    ):
        PairedDataset(folder, 4, 12, lr_folders=tmp_path / "lr")
    save(tmp_path / "lr/1.png", (9, 13))
    with pytest.raises(ValueError, match="lr/1.png, LR partner of .*hr/1.png, is 9x13; expected 9x12 at scale=4"):
        PairedDataset(folder, 4, 12, lr_folders=tmp_path / "lr")
    save(tmp_path / "lr/1.bmp", (9, 12))
    with pytest.raises(ValueError, match="1.png has two LR partners"):
        PairedDataset(folder, 4, 12, lr_folders=tmp_path / "lr")


@pytest.mark.parametrize("scale, cache_bytes", [(2, 0), (3, 0), (4, 0), (4, 2 << 30)])
def test_patches_are_cut_from_the_whole_lr(folder, scale, cache_bytes):
    pairs = PairedDataset(folder, scale, 12, cache_bytes=cache_bytes)
    patches = PatchDataset(pairs, 24, augment=False, seed=3)
    corners = set()
    for epoch in range(40):
        for index in range(3):
            lr, hr = patches[epoch, index]
            assert lr.shape == (3, 24 // scale, 24 // scale) and hr.shape == (3, 24, 24)
            whole_lr, whole_hr = pairs[index]
            windows = whole_hr.unfold(1, 24, 1).unfold(2, 24, 1)
            (at,) = (windows == hr[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()
            assert at[0] % scale == at[1] % scale == 0
            top, left = at[0] // scale, at[1] // scale
            assert torch.equal(lr, whole_lr[:, top : top + 24 // scale, left : left + 24 // scale])
            corners.add((index, *at))
    ends = {(0, 0), *((height - 24, width - 24) for height, width in pairs.sizes)}
    assert len(corners) > 25 and {c[1] for c in corners} >= {min(e[0] for e in ends), max(e[0] for e in ends)}


@pytest.mark.parametrize("patch", [24, None])
def test_augmentation_is_one_of_eight_and_alike_for_lr_and_hr(folder, patch):
    pairs = PairedDataset(folder, 4, 12)
    plain, augmented = (PatchDataset(pairs, patch, augment, seed=0) for augment in (False, True))
    seen = Counter()
    for epoch in range(60):
        lr, hr = plain[epoch, 1]
        variants = [
            tuple((x.flip(flips).mT if turned else x.flip(flips)) for x in (lr, hr))
            for flips in ([], [-1], [-2], [-1, -2])
            for turned in (False, True)
        ]
        found = augmented[epoch, 1]
        (kind,) = [i for i, v in enumerate(variants) if v[0].shape == found[0].shape and equal(v, found)]
        assert found[0].is_contiguous() and found[1].is_contiguous()
        seen[kind] += 1
    assert len(seen) == 8


@pytest.mark.parametrize("size, scale", [(16, 4), (12, 3)])
def test_tiles_lie_side_by_side(folder, size, scale):
    """Each is there once, in the order of rows, and is an image of its own: LR does not see what lies around it."""
    patches = PatchDataset(PairedDataset(folder, scale, scale), size, augment=False, seed=0, tiles=True)
    expected = []
    for path in sorted(folder.iterdir()):
        rgb = read_rgb(path)
        for top in range(0, rgb.shape[0] - size + 1, size):
            for left in range(0, rgb.shape[1] - size + 1, size):
                expected.append((path, make_pair(rgb[top : top + size, left : left + size], scale, scale)))
    assert len(patches) == len(expected) and patches.draws_to_cover == 1
    for epoch in (0, 5):
        for i, (path, pair) in enumerate(expected):
            assert equal(patches[epoch, i], pair) and patches.pairs.paths[patches.image(i)] == path
    assert equal(patches[0, len(expected) + 1], expected[1][1])


def test_tiles_of_a_large_image_are_as_many_as_the_released_code_has(tmp_path):
    """HR cropped to multiples of 28 there, then 336x336: an image of DIV2K has 6 x 4."""
    save(tmp_path / "0.png", (1356, 2040))
    patches = PatchDataset(PairedDataset(tmp_path, 4, 4, progress=False), 336, augment=False, seed=0, tiles=True)
    assert len(patches) == ((1356 - 1356 % 28) // 336) * ((2040 - 2040 % 28) // 336) == 24


def test_tiles_follow_their_images(folder):
    patches = PatchDataset(PairedDataset(folder, 4, 4), 16, augment=False, seed=0, tiles=True)
    before = [patches[0, i][1] for i in range(len(patches))]
    checksums = patches.checksums()
    assert patches.reorder(checksums[::-1])
    after = [patches[0, i][1] for i in range(len(patches))]
    assert len(after) == len(before) and not torch.equal(after[0], before[0])
    assert all(any(torch.equal(x, y) for y in before) for x in after)


def test_tiles_with_lr_files_and_small_images(folder, tmp_path):
    for path in folder.iterdir():
        height, width = (x // 4 for x in read_rgb(path).shape[:2])
        save(tmp_path / f"lr/{path.name}", (height, width), seed=9)
    pairs = PairedDataset(folder, 4, 4, lr_folders=tmp_path / "lr")
    patches = PatchDataset(pairs, 40, augment=True, seed=0, skip_small=True, tiles=True)
    assert [patches.image(i) for i in range(len(patches))] == [0, 2]
    whole = PatchDataset(pairs, 40, augment=False, seed=0, skip_small=True, tiles=True)
    assert torch.equal(whole[0, 0][0], pairs[0][0][:, :10, :10])


def test_patches_depend_on_seed_epoch_and_index_alone(folder):
    pairs = PairedDataset(folder, 4, 12)
    patches = PatchDataset(pairs, 12, augment=True, seed=5)
    first = patches[7, 2]
    patches[0, 0]
    assert equal(first, patches[7, 2]) and equal(first, PatchDataset(pairs, 12, augment=True, seed=5)[7, 2])
    for other in (patches[8, 2], patches[7, 5], PatchDataset(pairs, 12, augment=True, seed=6)[7, 2]):
        assert not torch.equal(first[1], other[1])


def test_patch_errors(folder):
    pairs = PairedDataset(folder, 4, 12)
    with pytest.raises(ValueError, match="patch=50 is not divisible by scale=4; use 48 or 52"):
        PatchDataset(pairs, 50, augment=True, seed=0)
    words = (
        "1.png is 36x48 after cropping, smaller than patch=40 as are 2 of 3 images; use --patch 36, or --skip-small to"
    )
    with pytest.raises(ValueError, match=words):
        PatchDataset(pairs, 40, augment=True, seed=0)
    with pytest.raises(ValueError, match="smaller than patch=96 as are 3 of 3 images; use --patch 36$"):
        PatchDataset(pairs, 96, augment=True, seed=0, skip_small=True)


def test_small_images_can_be_skipped(folder):
    pairs = PairedDataset(folder, 4, 12)
    patches = PatchDataset(pairs, 48, augment=False, seed=0, skip_small=True)
    assert patches.used == [0] and len(patches) == 1
    whole = pairs[0][1]
    cuts = [whole[:, :, left : left + 48] for left in range(0, 13, 4)]
    for index in range(5):
        assert any(torch.equal(patches[0, index][1], cut) for cut in cuts)


@pytest.mark.parametrize(
    "n, batchsize, repeat, steps", [(10, 3, 1, 3), (10, 5, 1, 2), (3, 8, 1, 1), (4, 6, 3, 2), (1, 1, 1, 1)]
)
def test_batches(n, batchsize, repeat, steps):
    sampler = ResumableBatchSampler(n, batchsize, seed=1, first_step=0, last_step=4 * steps, repeat=repeat)
    batches = list(sampler)
    assert sampler.steps_per_epoch == steps and len(sampler) == len(batches) == 4 * steps
    for epoch in range(4):
        keys = [key for batch in batches[epoch * steps : (epoch + 1) * steps] for key in batch]
        assert len(set(keys)) == len(keys) == steps * batchsize and {e for e, _ in keys} == {epoch}
        drawn = Counter(index % n for _, index in keys)
        assert max(drawn.values()) - min(drawn.get(i, 0) for i in range(n)) <= 1
    if n > 3:
        assert [i for _, i in batches[0]] != [i for _, i in batches[steps]]
    for first in range(4 * steps + 1):
        assert list(ResumableBatchSampler(n, batchsize, 1, first, 4 * steps, repeat)) == batches[first:]
    if n > 3:
        assert list(ResumableBatchSampler(n, batchsize, 2, 0, 4 * steps, repeat)) != batches


def test_batches_without_an_end_and_errors():
    keys = iter(ResumableBatchSampler(5, 2, seed=0))
    assert [next(keys)[0][0] for _ in range(5)] == [0, 0, 1, 1, 2]
    for arguments, words in [
        ((0, 1, 0), "n=0 is too small"),
        ((1, 0, 0), "batchsize=0 is too small"),
        ((5, 2, 0, 4, 3), "first_step=4 is not within 0..last_step=3"),
    ]:
        with pytest.raises(ValueError, match=words):
            ResumableBatchSampler(*arguments)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_worker_count_and_any_resume_point_see_the_same(folder):
    patches = PatchDataset(PairedDataset(folder, 4, 12, cache_bytes=20_000), 24, augment=True, seed=9)

    def load(first, workers):
        batches = ResumableBatchSampler(len(patches), 2, seed=9, first_step=first, last_step=6, repeat=2)
        return list(DataLoader(patches, batch_sampler=batches, num_workers=workers))

    whole = load(0, 0)
    assert len(whole) == 6 and whole[0][0].shape == (2, 3, 6, 6) and whole[0][1].shape == (2, 3, 24, 24)
    for first, workers in [(0, 1), (0, 2), (4, 0), (3, 2)]:
        assert all(equal(a, b) for a, b in zip(load(first, workers), whole[first:], strict=True))


def test_a_long_wait_without_a_terminal_is_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_QUIET", -1)
    PairedDataset(folder, 4, 12)
    out, err = capsys.readouterr()
    assert re.fullmatch(r"reading images: 3, about \d+ s to go\n", out) and err == ""
    PairedDataset(folder, 4, 12, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_QUIET", -1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    PairedDataset(folder, 4, 12)
    out, err = capsys.readouterr()
    assert "reading images:" in err and out == ""


def test_the_same_images_in_another_order_give_the_same_draws(folder, tmp_path):
    pairs = PairedDataset(folder, 4, 12)
    for number, name in ((0, "c"), (1, "a"), (2, "b")):
        (tmp_path / "renamed").mkdir(exist_ok=True)
        (tmp_path / f"renamed/{name}.png").write_bytes((folder / f"{number}.png").read_bytes())
    patches = PatchDataset(pairs, 24, augment=True, seed=5)
    others = PatchDataset(PairedDataset(tmp_path / "renamed", 4, 12), 24, augment=True, seed=5)
    assert others.checksums() != patches.checksums() and others.reorder(patches.checksums())
    assert others.checksums() == patches.checksums()
    assert all(equal(others[0, index], patches[0, index]) for index in range(9))
    assert not others.reorder(patches.checksums()[:2]) and not others.reorder([1, 2, 3])
