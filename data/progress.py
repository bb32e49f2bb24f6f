"""A progress bar for slow loops; without a terminal, a single line."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

_QUIET = 3  # seconds after which the line is printed


def show_progress(items: Iterable, label: str, total: int, shown: bool = True) -> Iterator:
    """Yield the items with a progress bar, or, if stderr is no terminal, one line after _QUIET seconds."""
    bar = tqdm(items, label, total, leave=False, disable=None if shown else True, unit="image", dynamic_ncols=True)
    began, silent = time.monotonic(), shown and not sys.stderr.isatty()
    for done, item in enumerate(bar):
        taken = time.monotonic() - began
        if silent and done and taken > _QUIET:
            print(f"{label}: {total}, about {taken / done * (total - done):.0f} s to go", flush=True)
            silent = False
        yield item
