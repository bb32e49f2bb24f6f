"""Errors of bad input: the nearest name, and the message of another error on one line."""

import difflib
from collections.abc import Collection


def choose(name: str, options: Collection[str], what: str) -> str:
    """Return name if it is one of options; raise ValueError with the nearest one and the list otherwise."""
    if name in options:
        return name
    near = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"unknown {what} {name!r}; {hint}one of: {', '.join(options)}")


def one_line(message: object) -> str:
    """A message, or an error's, on one line of at most 160 characters."""
    return " ".join(str(message).split())[:160]
