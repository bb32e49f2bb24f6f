"""Match image files: find the LR or SR partner of each HR file, and short unique names.

A partner is searched in the root folder of the same position and in the same sub-folder as its HR file. Its stem is the
HR's without marks such as _HR, with or without one of `_LR_MARKS`, in any case: 0001.png, 0001x4.png, 0001_LR.png,
0001_LRBI_x4.png.
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
# SCALE stands for a number. DIV2K's mild, wild and difficult sets have 0001x4m, 0001x4w2 and 0001x4d.
_LR_MARKS = (
    rf"{_END_OF_STEM}(?:lr(?:bi|bd|dn|bicubic|SCALE)?|lq|bicubic)$"
    r"|[ _-]?(?:lr)?(?:xSCALE(?:m|d|w\d?)?|SCALEx)$|_srf_?SCALE$"
)
_SCALE_FOLDER = re.compile(r"(?:lr[a-z_-]*)?(?:x(\d)|(\d)x)|(?:image_)?srf_?(\d)", re.IGNORECASE)


def rooted(folders: Folders) -> Files:
    """Every image file with its root folder's position in the list and its path below that root.

    Raises ValueError as list_images does.
    """
    roots = [folders] if isinstance(folders, str | Path) else list(folders)
    list_images(roots)  # raises for an empty list too
    files: Files = {}
    for position, root in enumerate(roots):
        for path in list_images(root):
            below = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
            files.setdefault(path, (position, below))
    return files


def unique_names(files: Files) -> dict[Path, str]:
    """A unique name for each file: its stem or, if others share that, more of its path."""
    labels = [
        (path.stem, below.with_suffix("").as_posix(), path.with_suffix("").as_posix(), path.as_posix())
        for path, (_, below) in files.items()
    ]
    counts = [Counter(column) for column in zip(*labels)]
    names = [next(x for x, count in zip(row, counts) if count[x] == 1) for row in labels]
    return dict(zip(files, names))


def match(hr: Files, lr: Files, scale: int, template: str | None = None) -> dict[Path, Path]:
    """The LR partner of each HR file that has one.

    template: the LR's stem, with {} for the HR's, such as "{}_small"; None: all usual forms.

    With as many LR roots as HR roots, they are matched in order; otherwise a partner may be in any root. Within a root
    it is in the HR's sub-folder (a part named after the scale, such as X4, is ignored) or, if that has no LR, anywhere.

    Raises ValueError, naming both, if two files could be the partner or two HR files would share one.
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
            exact = {file for base in bases for file in by_base[base]}  # preferred to names in another case
            found[path] = sorted(exact or {file for base in bases for file in by_lower[base.lower()]})
    return _one_each(found, "LR")


def match_sr(hr: Folders, sr: Folders, scale: int) -> dict[Path, Path]:
    """The SR image of each HR file that has one; hr and sr are folders as for `list_images`.

    An SR stem is the HR's, alone or followed by a space, "_", "-", "." or x and the scale, and then anything: baby.png,
    baby_x4.png, babyx4.png, baby_SR.png, baby_HAT_SRx4.png. The longest HR stem wins: img_1_b_SR.png belongs to
    img_1_b. LR and HR images among them are ignored. Folders and errors are as in `match`.
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
    """Describe two files if, by stems and sizes, one is the other's LR; None if there are no such files."""
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
    """The stem, and what is left after removing each mark from its end."""
    bases = {stem}
    while (match := marks.search(stem)) and match.start() > 0:
        stem = stem[: match.start()]
        bases.add(stem)
    return bases


def _pools(hr: Files, others: Files) -> list[tuple[list[Path], list[Path]]]:
    """Group HR files by root and sub-folder, each group with the other files to search for partners."""
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
    """The scale that a sub-folder is named after, as in X4/0001.png."""
    scales = [int(m[m.lastindex or 0]) for part in below.parent.parts if (m := _SCALE_FOLDER.fullmatch(part))]
    return scales[-1] if scales else None


def _place(below: Path) -> Path:
    """The folder of a file, without parts named after a scale."""
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
