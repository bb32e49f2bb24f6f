"""The file names of upscaled images, from images and folders of images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .images import SUFFIXES, list_images, walk
from .photographs import PREFIX, photographs
from .picture import KINDS


class Target(NamedTuple):
    """An image to read and the file to write; given: the input, as it was named, that it comes from."""

    source: Path
    path: Path
    kind: str  # a key of data.picture.ENCODERS
    given: str


def choose_targets(
    inputs: Sequence[str], suffix: str, output: str | None = None, kind: str = "png", renamed: bool = False
) -> list[Target]:
    """Choose a target for every image in inputs, which are files and folders.

    Folders are searched as by `list_images`; names and sub-folders stay. Without output, the images in DIR go to the
    new folder DIR + suffix beside it, FILE to its stem + suffix beside it. Otherwise all go below output, several
    folders to a sub-folder each.

    Args:
        kind: a key of data.picture.ENCODERS, or "same" for the source's, or png if that cannot be written.
        renamed: append suffix to the files' stems below output too.

    Targets of other inputs are no inputs themselves: they are the results of an earlier call. Raises ValueError for a
    missing input, two images with one target, and an image that would be overwritten.
    """
    folders = [name for name in inputs if not name.startswith(PREFIX) and os.path.isdir(name)]
    found: dict[Path, Target] = {}
    for name in inputs:
        if name.startswith(PREFIX):
            if output is None:
                raise ValueError(f"--input {name}: expected --output too, these photographs have no folder of yours")
            images = {path: Path(output) / path.name for path in photographs(name)}
            behind = suffix if renamed else ""
        elif os.path.isdir(name):
            base = _base(name, suffix, output, len(folders) > 1)
            images = {path: base / path.relative_to(name) for path in _images(name, base)}
            behind = suffix if renamed and output is not None else ""
        elif os.path.exists(name):
            path = Path(name)
            images = {path: (path.parent if output is None else Path(output)) / path.name}
            behind = suffix if renamed or output is None else ""
        else:
            raise ValueError(f"--input {name}: no such file or folder; check the path")
        for source, path in images.items():
            ending, its_kind = _ending(source, kind)
            target = Target(source, path.with_name(f"{path.stem}{behind}{ending}"), its_kind, name)
            found.setdefault(_real(source), target)
    return _without_clashes(found)


def _images(folder: str, base: Path) -> list[Path]:
    """The images in a folder, without those below base if base is inside it."""
    images = sorted(path for path in walk(Path(folder)) if path.suffix.lower() in SUFFIXES)
    if not images:
        list_images(folder)  # raises
    inside = _real(base)
    return [path for path in images if inside == _real(Path(folder)) or inside not in _real(path).parents]


def _base(folder: str, suffix: str, output: str | None, several: bool) -> Path:
    """The folder to which a folder's upscaled images go."""
    whole = Path(os.path.abspath(folder))
    if not whole.name and (several or output is None):
        raise ValueError(f"--input {folder}: has no name of its own; name the one folder to write to with --output")
    if output is None:
        if not suffix:
            raise ValueError("--suffix '': expected some letters, such as _x4, or --output DIR")
        as_named = Path(folder)
        return (whole if as_named.name in ("", "..") else as_named).with_name(whole.name + suffix)
    return Path(output) / whole.name if several else Path(output)


def _ending(source: Path, kind: str) -> tuple[str, str]:
    if kind != "same":
        return f".{kind}", kind
    its_kind = KINDS.get(source.suffix.lower())
    return (source.suffix, its_kind) if its_kind else (".png", "png")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _without_clashes(found: dict[Path, Target]) -> list[Target]:
    by_path: dict[Path, Target] = {}
    for source, target in found.items():
        written = _real(target.path)
        if written == source:
            raise ValueError(f"{target.source} would be written over; name another --output, or a --suffix")
        other = by_path.setdefault(written, target)
        if other is not target:
            raise ValueError(
                f"{other.source} and {target.source} would both be written to {target.path}; rename one of them, "
                "or keep their formats with --format same"
            )
    return [target for source, target in found.items() if source not in by_path]
