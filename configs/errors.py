"""What every command does with bad input: one line that names the setting and the remedy, and exit code 2."""

import argparse
import difflib
import sys
from collections.abc import Iterable
from contextlib import contextmanager

LONGEST = 2000  # characters of an error


def expect(condition: bool, name: str, value, expected: str) -> None:
    """Raise ValueError naming the setting, its value and what was expected, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{flag_of(name)} {value}: expected {expected}")


def one_line(text: str, longest: int = LONGEST) -> str:
    """text on one line, its middle left out beyond `longest` characters: an error need not repeat half a file."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest // 2]} ... {line[-longest // 2 :]}"


def choose(name: str, options: Iterable[str], what: str) -> str:
    """name, if it is one of options; else ValueError with the nearest one and the list."""
    options = list(options)
    if name in options:
        return name
    by_lower = {option.lower(): option for option in options}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[near[0]]}? " if near else ""
    raise ValueError(f"unknown {what} {name!r}; {hint}one of: {', '.join(options)}")


@contextmanager
def one_line_errors(program: str):
    """Turn what bad input raises, a ValueError or of the system an OSError, into one line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{program}: error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


class OneLineParser(argparse.ArgumentParser):
    """argparse, with errors on one line that suggest the nearest flag, and exit code 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(word.split("=")[0], flags, n=1)
            self.error(f"unknown argument {word}" + (f"; did you mean {near[0]}?" if near else "; see --help"))
        return namespace
