"""Which image files belong together: their names, and the LR partner of each HR file."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from .images import list_images

Folders = str | Path | Iterable[str | Path]


def rooted(folders: Folders) -> dict[Path, tuple[int, Path]]:
    """Every image file with its root folder's position in the list and its path below that root."""
    roots = [folders] if isinstance(folders, str | Path) else list(folders)
    list_images(roots)  # names the first wrong folder, or that there is none
    files: dict[Path, tuple[int, Path]] = {}
    for position, root in enumerate(roots):
        for path in list_images(root):
            below = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
            files.setdefault(path, (position, below))
    return files


def unique_names(files: dict[Path, tuple[int, Path]]) -> dict[Path, str]:
    """For each file the shortest of its stem, path below the root, path without suffix and path that no other has."""
    labels = [
        (path.stem, below.with_suffix("").as_posix(), path.with_suffix("").as_posix(), path.as_posix())
        for path, (_, below) in files.items()
    ]
    counts = [Counter(column) for column in zip(*labels)]
    names = [next(x for x, count in zip(row, counts) if count[x] == 1) for row in labels]
    return dict(zip(files, names))


def match(hr: dict[Path, tuple[int, Path]], lr: dict[Path, tuple[int, Path]], scale: int) -> dict[Path, Path]:
    """The LR partner of each HR file that has one. Raises ValueError where two could be meant."""
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for path in lr:
        by_stem[path.stem].append(path)
    owners: dict[Path, Path] = {}
    for path, (position, below) in hr.items():
        found = by_stem.get(path.stem) or by_stem.get(f"{path.stem}x{scale}") or []
        if not found:
            continue
        if len(found) > 1:
            found = [x for x in found if lr[x][1].parent == below.parent] or found
        if len(found) > 1:
            found = [x for x in found if lr[x][0] == position] or found
        if len(found) > 1:
            raise ValueError(f"{path} has two LR partners, {found[0]} and {found[1]}; expected one, remove the other")
        if found[0] in owners:
            raise ValueError(f"{path} and {owners[found[0]]} share the LR partner {found[0]}; expected two, add one")
        owners[found[0]] = path
    return {path: partner for partner, path in owners.items()}
