"""Which image files belong together: their names, and the LR or SR partner of each HR file.

A partner is looked for in the place of its HR file, that is, in the root of the same number and in the same sub-folder,
and there by name: the HR's stem with a mark of `_LR_MARKS` or none (0001.png, 0001x4.png, 0001_LR.png,
0001_LRBI_x4.png), in upper or lower case. The HR's own mark (0001_HR.png) does not count.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from .images import list_images

Folders = str | Path | Iterable[str | Path]
Files = dict[Path, tuple[int, Path]]  # each file's root, by its position in the list, and its path below that root

_END_OF_STEM = r"(?:[ _-]|(?<=\d))"
_HR_MARK = re.compile(rf"{_END_OF_STEM}(?:hr|gt)$|[_-]x1$|_srf_?\d$", re.IGNORECASE)
# SCALE is a number. DIV2K's mild, wild and difficult sets are 0001x4m, 0001x4w2 and 0001x4d.
_LR_MARKS = (
    rf"{_END_OF_STEM}(?:lr(?:bi|bd|dn|bicubic|SCALE)?|lq|bicubic)$"
    r"|[ _-]?(?:lr)?(?:xSCALE(?:m|d|w\d?)?|SCALEx)$|_srf_?SCALE$"
)
_SCALE_FOLDER = re.compile(r"(?:lr[a-z_-]*)?(?:x(\d)|(\d)x)|(?:image_)?srf_?(\d)", re.IGNORECASE)


def rooted(folders: Folders) -> Files:
    """Every image file with its root folder's position in the list and its path below that root."""
    roots = [folders] if isinstance(folders, str | Path) else list(folders)
    list_images(roots)  # names the first wrong folder, or that there is none
    files: Files = {}
    for position, root in enumerate(roots):
        for path in list_images(root):
            below = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
            files.setdefault(path, (position, below))
    return files


def unique_names(files: Files) -> dict[Path, str]:
    """For each file the shortest of its stem, path below the root, path without suffix and path that no other has."""
    labels = [
        (path.stem, below.with_suffix("").as_posix(), path.with_suffix("").as_posix(), path.as_posix())
        for path, (_, below) in files.items()
    ]
    counts = [Counter(column) for column in zip(*labels)]
    names = [next(x for x, count in zip(row, counts) if count[x] == 1) for row in labels]
    return dict(zip(files, names))


def match(hr: Files, lr: Files, scale: int, template: str | None = None) -> dict[Path, Path]:
    """The LR partner of each HR file that has one.

    template: the LR's stem where {} is the HR's, such as "{}_small"; None for all usual forms.
    With as many LR roots as HR roots each has its own; otherwise a partner may be in any. Within a root, it is in the
    HR's own sub-folder (one named for the scale, X4, counts as its parent) or, if no LR is there, anywhere.

    Raises ValueError, naming both, if two files could be the partner, or two HR files would share one.
    """
    marks = _lr_marks(str(scale))
    found = {}
    for hr_paths, lr_paths in _pools(hr, {path: at for path, at in lr.items() if _scale_of(at[1]) in (None, scale)}):
        hr_stems = {path.stem for path in hr_paths}
        by_base, by_lower = defaultdict(list), defaultdict(list)
        for path in lr_paths:
            for base in {path.stem} if template or path.stem in hr_stems else _without(marks, path.stem):
                by_base[base].append(path)
                by_lower[base.lower()].append(path)
        for path in hr_paths:
            bases = {template.replace("{}", path.stem)} if template else _without(_HR_MARK, path.stem)
            exact = {file for base in bases for file in by_base[base]}  # before those of another case
            found[path] = sorted(exact or {file for base in bases for file in by_lower[base.lower()]})
    return _one_each(found, "LR")


def match_sr(hr: Folders, sr: Folders, scale: int) -> dict[Path, Path]:
    """The finished SR image of each HR file of the folders, as `list_images` gives them, that has one.

    An SR name is the HR's stem, alone or with anything behind a space, "_", "-", "." or an x and the scale: baby.png,
    baby_x4.png, babyx4.png, baby_SR.png, baby_HAT_SRx4.png. The longest stem that fits wins: img_1_b_SR.png is of
    img_1_b. LR and HR images beside them are left out. Places and errors are those of `match`.
    """
    others = re.compile(rf"[ _-](?:lr|lq|hr|gt)(?:bi|bd|dn)?(?:[_-]?x?{scale})?$", re.IGNORECASE)
    found = {}
    for hr_paths, sr_paths in _pools(rooted(hr), rooted(sr)):
        owners = defaultdict(list)
        for path in hr_paths:
            found[path] = []
            for base in _without(_HR_MARK, path.stem):
                owners[base.lower()].append(path)
        for path in sr_paths:
            stem = path.stem.lower()
            if others.search(stem) and stem not in owners:
                continue
            ends = [len(stem), *reversed([m.start() for m in re.finditer(rf"[ _.-]|x{scale}", stem)])]
            for owner in next((owners[stem[:end]] for end in ends if stem[:end] in owners), ()):
                found[owner].append(path)
    return _one_each(found, "SR")


def find_lr_among_hr(sizes: dict[Path, tuple[int, int]]) -> str | None:
    """Two files of a set, in words, if one is the other's LR: the same stem, and sizes a whole scale apart."""
    marks = _lr_marks(r"\d")
    by_base: defaultdict[str, dict[tuple[int, int], Path]] = defaultdict(dict)
    for path, size in sizes.items():
        for base in _without(marks, path.stem) | _without(_HR_MARK, path.stem):
            by_base[base.lower()].setdefault(size, path)
    for by_size in by_base.values():
        for (height, width), large in by_size.items():
            for scale in (2, 3, 4, 8):
                if small := by_size.get((height // scale, width // scale)):
                    return f"{small} ({height // scale}x{width // scale}) and {large} ({height}x{width})"
    return None


def _lr_marks(scale: str) -> re.Pattern:
    return re.compile(_LR_MARKS.replace("SCALE", scale), re.IGNORECASE)


def _without(marks: re.Pattern, stem: str) -> set[str]:
    """stem, and what is left of it as marks are taken off its end one by one."""
    bases = {stem}
    while (match := marks.search(stem)) and match.start() > 0:
        stem = stem[: match.start()]
        bases.add(stem)
    return bases


def _pools(hr: Files, others: Files) -> list[tuple[list[Path], list[Path]]]:
    """The HR files that share a place, with the other files that are there."""
    apart = len({root for root, _ in hr.values()}) == len({root for root, _ in others.values()})
    there: defaultdict[tuple, list[Path]] = defaultdict(list)
    for path, (root, below) in others.items():
        there[root * apart, _place(below)].append(path)
        there[root * apart, None].append(path)
    here: defaultdict[tuple, list[Path]] = defaultdict(list)
    for path, (root, below) in hr.items():
        key = (root * apart, _place(below))
        here[key if key in there else (root * apart, None)].append(path)
    return [(paths, there[key]) for key, paths in here.items()]


def _scale_of(below: Path) -> int | None:
    """The scale that a sub-folder is named for, as in X4/0001.png."""
    scales = [int(m[m.lastindex or 0]) for part in below.parent.parts if (m := _SCALE_FOLDER.fullmatch(part))]
    return scales[-1] if scales else None


def _place(below: Path) -> Path:
    """The folder of a file without parts that are named for a scale."""
    return Path(*(part for part in below.parent.parts if not _SCALE_FOLDER.fullmatch(part)))


def _one_each(found: dict[Path, list[Path]], kind: str) -> dict[Path, Path]:
    owners: dict[Path, Path] = {}
    for path, files in found.items():
        if len(files) > 1:
            raise ValueError(
                f"{path} has two {kind} partners, {files[0]} and {files[1]}; expected one, move the other away"
            )
        for file in files:
            if file in owners:
                raise ValueError(f"{path} and {owners[file]} share the {kind} partner {file}; expected two, add one")
            owners[file] = path
    return {path: file for file, path in owners.items()}
