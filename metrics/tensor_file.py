"""Files of tensors that may be a stranger's or damaged: what cannot be trusted is refused in one line, never run."""

import errno
import re
import warnings
import zipfile
from pathlib import Path

import torch

from .errors import one_line


class FileAccessError(ValueError):
    """A file that is there, and may be whole, but cannot be read now."""


def load_tensor_file(path: str | Path, what: str, remedy: str = ""):
    """What torch.save wrote to path, tensors and plain values, on the CPU. Errors call it `what` and give the remedy.

    Raises ValueError where it is anything else or its bits are not as they were written, FileAccessError where the system
    does not let it be read.
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
    """Raise an exception where a checksum in the file is wrong. Files from before torch wrote archives have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")


def _reason(error: Exception) -> str:
    """Why torch.load refused a file, without its advice to run what is in it."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    expected = "expected tensors alone, as of torch.save(net.state_dict(), FILE)"
    code = re.search(r"GLOBAL (\S+) was not an allowed|GLOBAL (\S+) whose module", text)
    if code:
        return f"it would run code: {one_line(code[1] or code[2])}; {expected}"
    if "weights_only" in text:
        return f"damaged, or not torch.save's; {expected}"
    return one_line(text) or type(error).__name__
