"""Files that are no tensors are refused in one line that says why, and never how to run what is in them."""

import argparse
import io
import os
import pickle
import shutil

import pytest
import torch

from metrics.backbones import read_backbone_file
from runs.checkpoint import load_checkpoint


class Runs:
    """Unpickling it calls function(*arguments)."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


FOREIGN = "damaged, or not torch.save's; expected tensors alone"
FILES = {
    "builtin": (saved({"net": Runs(exec, "1")}), "it would run code: exec; expected tensors alone"),
    "of a module": (saved({"net": Runs(shutil.which, "ls")}), "it would run code: shutil.which; expected"),
    "blocked": (saved({"net": Runs(os.mkdir, "ran")}), "it would run code: posix.mkdir; expected"),
    "old form": (saved(Runs(os.mkdir, "ran"), _use_new_zipfile_serialization=False), "it would run code: posix.mkdir;"),
    "network": (saved(torch.nn.Linear(2, 2)), "it would run code: torch.nn.modules.linear.Linear;"),
    "class": (saved({"args": argparse.Namespace(a=1)}), "it would run code: argparse.Namespace;"),
    "pickle 2": (pickle.dumps({"net": Runs(exec, "1")}, 2), "it would run code: "),
    "pickle 4": (pickle.dumps({"net": Runs(exec, "1")}, 4), FOREIGN),
    "page": (b"<html>404</html>", FOREIGN),
    "empty": (b"", "EOFError"),
}


@pytest.mark.parametrize("load", [load_checkpoint, read_backbone_file])
@pytest.mark.parametrize("name", FILES)
def test_the_reason_is_given(tmp_path, name, load, recwarn):
    content, reason = FILES[name]
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="file.pt: cannot be read as ") as caught:
        load(path)
    assert reason in str(caught.value), str(caught.value)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not recwarn.list
