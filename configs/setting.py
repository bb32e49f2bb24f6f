"""A field of Config: its type, its bounds, and the conversion of its value from a flag or YAML."""

import dataclasses
import os
import reprlib
from collections.abc import Collection
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

from .errors import expect, flag_of
from .reading import expand_path, has_commas

OF_FILE = "spandrel:"  # followed by a path, instead of a network's name
KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "NAME: VALUE pairs"}


class Bounds(NamedTuple):
    """The bounds of a number: `least` and `most` are allowed values, `above` and `below` are not."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value) -> bool:
        if self.least is not None and not self.least <= value or self.above is not None and not self.above < value:
            return False
        return value <= self.most if self.most is not None else value < self.below

    def __str__(self) -> str:
        low = f"from {self.least:.15g}" if self.least is not None else f"above {self.above:.15g}"
        return f"{low} to {self.most:.15g}" if self.most is not None else f"{low}, below {self.below:.15g}"


def setting(default, help: str, choices: Collection = (), *, bounds: Bounds | None = None, names="", path="", group=""):
    """Declare a field of Config.

    Args:
        choices: the allowed values, if they are few and fixed.
        bounds: of the number, or of each number of a tuple; every numeric setting has some.
        names: if the value is a name: its kind, a key of catalogue.TABLES.
        path: "DIR" or "FILE" if the value is a path, in which ~ and ${VAR} are replaced.
        group: the heading in --help of this field and those after it.
    """
    about = {"help": help, "choices": choices, "bounds": bounds, "names": names, "path": path, "group": group}
    return dataclasses.field(default=default, metadata=about)


def kind_of(annotation) -> tuple[type, bool]:
    """The type of one value, and True for a tuple of values: tuple[str, ...] -> (str, True)."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0], True
    if isinstance(annotation, UnionType):
        return get_args(annotation)[0], False
    return annotation, False


def shown(value) -> str:
    """Format a value as it is typed after its flag."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def value_kind(field) -> str:
    """The kind of value that the field takes: "a whole number", "text"."""
    return KIND_NAMES[kind_of(field.type)[0]]


def convert(field, value):
    """Convert value to the field's type and expand paths. Raises ValueError if it does not fit."""
    kind, many = kind_of(field.type)
    if value is None and field.default is None:
        return None
    if many:
        values = value if isinstance(value, (list, tuple)) else [value]
        for text in values:
            _refuse_commas(field, text)
        return tuple(_convert_one(field, kind, v) for v in values)
    return _convert_one(field, kind, value)


def _refuse_commas(field, text) -> None:
    """Raise ValueError for a list with commas, but not for a path that exists or whose parts do not all."""
    if not isinstance(text, str) or not has_commas(text):
        return
    parts = text.replace(",", " ").split()
    if field.metadata["path"]:
        together, *alone = (os.path.exists(expand_path(path)) for path in (text, *parts))
        if together or not alone or not all(alone):
            return
    flag = flag_of(field.name)
    raise ValueError(f"{flag} {text}: separate with spaces, {flag} {' '.join(parts)} (in YAML: [{', '.join(parts)}])")


def _convert_one(field, kind: type, value: Any):
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-4 as a string
        except (ValueError, OverflowError):
            pass
    if kind is float and isinstance(value, float):
        expect(abs(value) < float("inf"), field.name, value, "a finite number")
    expect(type(value) is kind, field.name, reprlib.repr(value), KIND_NAMES[kind])
    choices = field.metadata["choices"]
    expect(not choices or value in choices, field.name, value, "one of " + ", ".join(map(str, choices)))
    prefix = OF_FILE if field.metadata["names"] == "model" and str(value).startswith(OF_FILE) else ""
    if not field.metadata["path"] and not prefix:
        return value
    try:
        return prefix + expand_path(str(value).removeprefix(prefix))
    except ValueError as error:
        raise ValueError(f"{flag_of(field.name)} {error}") from None
