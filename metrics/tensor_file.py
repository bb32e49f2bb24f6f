"""Read the files of checkpoints and weights: checksums first, and no code in a file is run.

runs/checkpoint.py loads checkpoints through this file and then checks what they hold: names, shapes, types, counts. It
lies here because metrics reads its backbones' files with it too, and imports nothing from outside itself.
"""

import errno
import re
import warnings
import zipfile
from pathlib import Path

import torch

from .errors import one_line


class FileAccessError(ValueError):
    """A file that exists, and may be intact, but cannot be read now."""


def load_tensor_file(path: str | Path, what: str, remedy: str = ""):
    """Read what torch.save wrote to path, tensors and plain values, on the CPU.

    Args:
        path: the file.
        what: what errors call it.
        remedy: the end of errors.

    Raises ValueError for anything else and for wrong checksums, FileAccessError if the system does not let it be read.
    """
    try:
        verify_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the unpickler raise
        # Sizes within a damaged archive can lead before its beginning: that is EINVAL.
        refused = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EINVAL)
        kind = FileAccessError if refused else ValueError
        raise kind(f"{path}: cannot be read as {what} ({_reason(error)}){remedy}") from None


def verify_checksums(path: str | Path) -> None:
    """Raise an exception if a checksum in the file is wrong. Files older than torch's archives have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")


def _reason(error: Exception) -> str:
    """The reason why torch.load refused a file, without its advice to run what is in it."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    expected = "expected tensors alone, as of torch.save(net.state_dict(), FILE)"
    code = re.search(r"GLOBAL (\S+) was not an allowed|GLOBAL (\S+) whose module", text)
    if code:
        return f"it would run code: {one_line(code[1] or code[2])}; {expected}"
    if "weights_only" in text:
        return f"damaged, or not torch.save's; {expected}"
    return one_line(text) or type(error).__name__
