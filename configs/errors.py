"""Errors for bad input, the same in every command: one line with setting and remedy, exit code 2."""

import argparse
import difflib
import shutil
import sys
import textwrap
from collections.abc import Iterable
from contextlib import contextmanager

from .habits import instead_of

LONGEST = 2000  # characters of an error


def expect(condition: bool, name: str, value, expected: str) -> None:
    """Raise ValueError naming the setting, its value and what was expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{flag_of(name)} {value}: expected {expected}")


def one_line(text: str, longest: int = LONGEST) -> str:
    """Put text on one line; leave out its middle if it is longer than `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest // 2]} ... {line[-longest // 2 :]}"


def choose(name: str, options: Iterable[str], what: str) -> str:
    """Return name if it is one of options; otherwise raise ValueError with the nearest one and the list."""
    options = list(options)
    if name in options:
        return name
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[near[0]]}? " if near else ""
    parts = str(name).replace(",", " ").split()
    if len(parts) > 1 and all(part in options for part in parts):
        hint = f"separate with spaces: {' '.join(parts)}; "
    raise ValueError(f"unknown {what} {name!r}; {hint}one of: {', '.join(options)}")


@contextmanager
def one_line_errors(program: str):
    """Turn a ValueError or OSError into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{program}: error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Format help with descriptions as written, and without breaking names such as HAT-TLW."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=min(shutil.get_terminal_size().columns - 2, 110))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class OneLineParser(argparse.ArgumentParser):
    """argparse with one-line errors that suggest a flag for an unknown one, and exit code 2.

    The description and the epilog keep their line breaks.
    """

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            meant = instead_of(word, flags) or _nearest_flag(word, flags)
            self.error(f"unknown argument {word}" + (f"; did you mean {meant}?" if meant else "; see --help"))
        return namespace


def _nearest_flag(word: str, flags: list[str]) -> str | None:
    """The flag that word is a misspelling of, if any. --k-epochs does not count as one of --epochs."""
    name = word.split("=")[0].lstrip("-").replace("_", "-")
    if not word.startswith("-") or not name:
        return None
    spelled = {flag.lstrip("-"): flag for flag in flags if name not in flag.lstrip("-").split("-")}
    near = difflib.get_close_matches(name, spelled, n=1, cutoff=0.75)
    return spelled[near[0]] if near else None
