"""Decoded images on the disk: the same pixels, read once, bounded, and never taken for another file's."""

import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data import ImageCache, ImageReadError, PairedDataset, PatchDataset, ResumableBatchSampler, cache, datasets
from data.images import read_rgb


@pytest.fixture
def folder(tmp_path):
    """Five images, the LR of three times the size in another folder."""
    for number in range(5):
        for name, factor in (("hr", 3), ("lr", 1)):
            size = ((20 + 4 * number) * factor, 32 * factor, 3)
            pixels = np.random.default_rng([number, factor]).integers(256, size=size, dtype=np.uint8)
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The files that were decoded."""
    files = []
    monkeypatch.setattr(datasets, "read_rgb", lambda path: files.append(path) or read_rgb(path))
    return files


def on_disk(folder, **settings) -> PairedDataset:
    limit = settings.pop("limit", 1 << 30)
    return PairedDataset(folder / "hr", 3, 3, cache=ImageCache(folder / "cache", limit, beyond=0), **settings)


def same(one, other) -> bool:
    return all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("lr", [None, "lr"])
@pytest.mark.parametrize("round_lr", [False, True])
def test_the_same_pixels_and_each_file_decoded_once(folder, decoded, lr, round_lr):
    settings = {"lr_folders": lr and folder / lr, "round_lr": round_lr}
    plain = PairedDataset(folder / "hr", 3, 3, **settings)
    decoded.clear()
    first = on_disk(folder, **settings)
    assert len(decoded) == (5 if lr is None else 10)
    decoded.clear()
    for pairs in (first, on_disk(folder, **settings)):
        assert (pairs.sizes, pairs.names, pairs.checksums) == (plain.sizes, plain.names, plain.checksums)
        assert same(pairs, plain) and same(pairs, plain)
        patches, expected = (PatchDataset(x, 36, augment=True, seed=1) for x in (pairs, plain))
        assert same(
            [patches[e, i] for e in range(3) for i in range(9)], [expected[e, i] for e in range(3) for i in range(9)]
        )
    assert decoded == []


def test_small_sets_stay_in_memory(folder):
    pairs = PairedDataset(folder / "hr", 3, 3, cache=ImageCache(folder / "cache", beyond=1 << 20))
    assert not (folder / "cache").exists() and pairs.notes == []
    assert same(pairs, PairedDataset(folder / "hr", 3, 3))


def test_what_was_stored_is_said_once(folder):
    assert on_disk(folder).notes == [f"5 decoded images were stored in {folder / 'cache'}"]
    assert on_disk(folder).notes == []


@pytest.mark.parametrize("change", ["size", "mtime"])
def test_a_file_that_changed_is_decoded_again(folder, decoded, change):
    on_disk(folder)
    path = folder / "hr/2.png"
    before = path.stat()
    Image.fromarray(read_rgb(path) // (2 if change == "size" else 1) ^ 1).save(path)
    if change == "size":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    decoded.clear()
    pairs = on_disk(folder)
    assert decoded == [path] and same(pairs, PairedDataset(folder / "hr", 3, 3))


def test_a_moved_set_is_known_by_its_checksums_and_decoded_again(folder, decoded):
    before = on_disk(folder).checksums
    (folder / "hr").rename(folder / "elsewhere")
    decoded.clear()
    moved = PairedDataset(folder / "elsewhere", 3, 3, cache=ImageCache(folder / "cache", beyond=0))
    assert moved.checksums == before and len(decoded) == 5


def test_a_start_reads_what_is_missing(folder, decoded):
    on_disk(folder)
    Image.new("RGB", (30, 30)).save(folder / "hr/new.png")
    decoded.clear()
    assert len(on_disk(folder)) == 6 and [path.name for path in decoded] == ["new.png"]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "gone"])
def test_a_damaged_cache_is_not_believed(folder, decoded, damage):
    pairs = on_disk(folder)
    expected = list(PairedDataset(folder / "hr", 3, 3))
    for file in (folder / "cache").rglob("*.rgb"):
        data = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes({"cut": data[:-1], "empty": b"", "other": b"x" * len(data)}[damage])
    decoded.clear()
    assert same(pairs, expected) and len(decoded) == 5  # a run under way
    decoded.clear()
    assert same(on_disk(folder), expected) and len(decoded) == 5  # and the next one


def test_a_file_that_changes_does_not_change_a_run_under_way(folder):
    """Also if another run stored its new pixels; without the cache it stops the run."""
    pairs, expected = on_disk(folder), list(PairedDataset(folder / "hr", 3, 3))
    Image.fromarray(255 - read_rgb(folder / "hr/0.png")).save(folder / "hr/0.png")
    assert not same([on_disk(folder)[0]], expected[:1]) and same(pairs, expected)
    shutil.rmtree(folder / "cache")
    with pytest.raises(ImageReadError, match="hr/0.png has changed"):
        pairs[0]
    assert same([pairs[1]], expected[1:2])


def test_the_bound_is_kept_and_the_longest_unused_go(folder):
    stored = on_disk(folder)
    whole = sum(file.stat().st_size for file in (folder / "cache").rglob("*.rgb"))
    for file in (folder / "cache").rglob("*.rgb"):
        os.utime(file, (0, 0))
    (folder / "others").mkdir()
    Image.new("RGB", (50, 40)).save(folder / "others/a.png")
    PairedDataset(folder / "others", 3, 3, cache=ImageCache(folder / "cache", whole, beyond=0))
    left = list((folder / "cache").rglob("*.rgb"))
    assert sum(file.stat().st_size for file in left) <= whole
    found = [ImageCache(folder / "cache").find(path) for path in (folder / "others/a.png", *stored.paths)]
    assert found[0] is not None and found[1:].count(None) == 1
    assert same(stored, PairedDataset(folder / "hr", 3, 3))  # what went is decoded


def test_what_finds_no_room_is_decoded_and_said(folder, decoded):
    limit = 70 * 96 * 3 * 3
    pairs = on_disk(folder, limit=limit, cache_bytes=0)
    stored = [file.stat().st_size for file in (folder / "cache").rglob("*.rgb")]
    assert 1 <= len(stored) <= 3 and sum(stored) <= limit
    (note,) = pairs.notes
    assert "not all images fit into the cache" in note and "--cache-size" in note and "--cache" in note
    decoded.clear()
    assert same(pairs, PairedDataset(folder / "hr", 3, 3, cache_bytes=0)) and len(decoded) == 5 - len(stored) + 10


def test_a_folder_that_cannot_be_written_to(folder, decoded):
    (folder / "cache").write_text("a file")
    pairs = on_disk(folder)
    assert same(pairs, PairedDataset(folder / "hr", 3, 3))
    assert "not all images fit into the cache" in pairs.notes[0] and len(pairs.notes) == 1


def test_a_full_disk(folder, monkeypatch):
    usage = cache.shutil.disk_usage(folder)
    monkeypatch.setattr(cache, "_KEEP_FREE", 1 / 20)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage._replace(free=usage.total // 20))
    pairs = on_disk(folder)
    assert list((folder / "cache").rglob("*.rgb*")) == [] and "not all images fit" in pairs.notes[0]


def test_bad_images_are_not_stored(folder):
    (folder / "hr/3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="hr/3.png: not a PNG"):
        on_disk(folder)
    for _ in range(2):
        assert [path.name for path in on_disk(folder, bad_images="skip").skipped] == ["3.png"]


def _fill(folder: Path, results) -> None:
    count = []
    datasets.read_rgb = lambda path: time.sleep(0.2) or count.append(path) or read_rgb(path)
    results.put((len(count), on_disk(folder).checksums, len(count)))


def test_processes_that_start_together_share_the_work(folder):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_fill, args=(folder, results)) for _ in range(3)]
    [process.start() for process in processes]
    found = [results.get(timeout=60) for _ in processes]
    [process.join() for process in processes]
    assert sum(count for *_, count in found) == 5 and len({str(checksums) for _, checksums, _ in found}) == 1
    assert list((folder / "cache").glob("*.lock")) == []


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_worker_count_and_any_resume_point_see_the_same(folder):
    patches = PatchDataset(on_disk(folder), 36, augment=True, seed=9)
    plain = PatchDataset(PairedDataset(folder / "hr", 3, 3), 36, augment=True, seed=9)

    def load(patches, first, workers):
        batches = ResumableBatchSampler(len(patches), 2, seed=9, first_step=first, last_step=6, repeat=2)
        return list(DataLoader(patches, batch_sampler=batches, num_workers=workers))

    whole = load(plain, 0, 0)
    for first, workers in [(0, 0), (0, 2), (4, 1)]:
        assert same(load(patches, first, workers), whole[first:])
    again = PatchDataset(on_disk(folder), 36, augment=True, seed=9)
    assert same(load(again, 3, 0), whole[3:])


def test_a_process_that_is_no_fork_gets_it_too(folder):
    pairs = on_disk(folder)
    assert same(pickle.loads(pickle.dumps(pairs)), pairs)


def test_files_do_not_stay_open(folder):
    """Each would be one of the 1024 that a process may have."""
    pairs = on_disk(folder)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    kept = [pairs[i] for i in range(5) for _ in range(3)]
    assert len(kept) == 15 and (not before or len(os.listdir("/proc/self/fd")) == before)
