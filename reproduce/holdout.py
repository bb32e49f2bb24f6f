"""The validation images of a grid, which choose `best`: a share of the training images, held out.

The choice is a pure function of the images' names: the same on every machine and for all cells.
"""

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from data import list_images
from training.evaluation import label_folders


def split(folders: Iterable[str], share: float) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Split the images of folders into training and held-out ones, each as {path: path of its link}.

    share: of the images to hold out, above 0 and below 1, at least one: those with the lowest CRC-32 of DATASET/NAME.
    Raises ValueError if a folder is missing, two images clash or there are fewer than two.
    """
    places = {}
    for label, folder in label_folders(folders).items():
        root = Path(label.partition(":")[0]) if label.startswith("skimage:") else Path(Path(folder).absolute().name)
        for path in list_images(folder):
            below = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
            places[path.absolute()] = root / below
    if len(set(places.values())) < len(places):
        raise ValueError(f"--trainpath {' '.join(folders)}: two images of one name in folders of one name; rename one")
    if len(places) < 2:
        raise ValueError(f"--trainpath {' '.join(folders)}: one image, so none can be held out; give --valpath")
    order = sorted(places, key=lambda path: (zlib.crc32(places[path].as_posix().encode()), places[path]))
    held = set(order[: min(max(1, round(share * len(order))), len(order) - 1)])
    return (
        {path: place for path, place in places.items() if path not in held},
        {path: place for path, place in places.items() if path in held},
    )


def roots(images: Mapping[Path, Path], folder: Path) -> list[str]:
    """The folders below `folder` that `link` makes: one for each data set."""
    return [str(folder / name) for name in dict.fromkeys(place.parts[0] for place in images.values())]


def link(images: Mapping[Path, Path], folder: Path) -> None:
    """Link every image at its place below folder. Raises ValueError if folder holds links to others."""
    wanted = {folder / place: path for path, place in images.items()}
    for path in folder.rglob("*"):
        if path.is_symlink() and (path not in wanted or path.readlink() != wanted[path]):
            raise ValueError(
                f"--trainpath, --holdout: {path} is none of these training images; take those that the "
                "grid was begun with, or another --out"
            )
    for path, image in wanted.items():
        if not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(image)


def check_disjoint(sets: Mapping[str, Iterable[Path]]) -> None:
    """Raise ValueError if two of the sets share an image, by content; the keys name the sets."""
    seen: dict[tuple, tuple[str, Path]] = {}
    for name, paths in sets.items():
        for path in paths:
            content = path.read_bytes()
            key = len(content), zlib.crc32(content)
            before, other = seen.setdefault(key, (name, path))
            if before != name:
                raise ValueError(
                    f"{name}: {path} is {other} of {before} again; what is reported must be chosen and "
                    "learned on other images, leave it out of one of them"
                )
