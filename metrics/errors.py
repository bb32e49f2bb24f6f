"""Helpers for error messages: the nearest valid name, and a message on one line."""

import difflib
from collections.abc import Collection


def choose(name: str, options: Collection[str], what: str) -> str:
    """Return name if it is in options; else raise ValueError with the nearest one and the list."""
    if name in options:
        return name
    near = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"unknown {what} {name!r}; {hint}one of: {', '.join(options)}")


def one_line(message: object) -> str:
    """A message or exception as one line of at most 160 characters."""
    return " ".join(str(message).split())[:160]
