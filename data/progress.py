"""A progress bar for what takes more than a few seconds; without a terminal it is one line."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

_QUIET = 3  # seconds after which a wait without a bar is announced


def show_progress(items: Iterable, label: str, total: int, shown: bool = True) -> Iterator:
    """The items, with a bar on a terminal, or a line once they have taken _QUIET seconds; so that logs stay clean."""
    bar = tqdm(items, label, total, leave=False, disable=None if shown else True, unit="image", dynamic_ncols=True)
    began, silent = time.monotonic(), shown and not sys.stderr.isatty()
    for done, item in enumerate(bar):
        taken = time.monotonic() - began
        if silent and done and taken > _QUIET:
            print(f"{label}: {total}, about {taken / done * (total - done):.0f} s to go", flush=True)
            silent = False
        yield item
