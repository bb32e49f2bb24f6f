"""Read checkpoints and weights: checksums are checked first, and no code in a file is run.

runs/checkpoint.py uses it for checkpoints and then checks their content. It is here because metrics needs it for its
backbones' weights and imports nothing of ours from outside.
"""

import errno
import re
import warnings
import zipfile
from pathlib import Path

import torch

from .errors import one_line


class FileAccessError(ValueError):
    """Error for a file that exists and may be intact, but cannot be read now."""


def load_tensor_file(path: str | Path, what: str, remedy: str = ""):
    """Read a file of torch.save with tensors and plain values, to the CPU.

    Args:
        path: the file.
        what: its name in errors, such as "weights".
        remedy: the end of errors, such as "; fetch it again".

    Raises ValueError for other content and wrong checksums, FileAccessError if the system refuses to read the file.
    """
    try:
        verify_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds for damaged or foreign files
        # EINVAL: a damaged archive's sizes point before its beginning.
        refused = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.EINVAL)
        kind = FileAccessError if refused else ValueError
        raise kind(f"{path}: cannot be read as {what} ({_reason(error)}){remedy}") from None


def verify_checksums(path: str | Path) -> None:
    """Raise an exception for a wrong checksum. Files older than torch's zip archives have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")


def _reason(error: Exception) -> str:
    """The reason why torch.load refused a file, without torch's advice to run the code in it."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    expected = "expected tensors alone, as of torch.save(net.state_dict(), FILE)"
    code = re.search(r"GLOBAL (\S+) was not an allowed|GLOBAL (\S+) whose module", text)
    if code:
        return f"it would run code: {one_line(code[1] or code[2])}; {expected}"
    if "weights_only" in text:
        return f"damaged, or not torch.save's; {expected}"
    return one_line(text) or type(error).__name__
