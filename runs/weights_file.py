"""Read files of weights, ours and other toolkits'."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from models.export import is_our_export, split_safetensors
from models.layouts import Imported, import_weights, unwrap
from models.spandrel_network import PREFIX

from .checkpoint import load_checkpoint


def read_weights_file(path: Path) -> tuple[Mapping, dict[str, str]]:
    """Read a file of weights; return its content and its metadata, which only safetensors has.

    Runs no code from the file. Raises ValueError.
    """
    if path.suffix.lower() != ".safetensors":
        return load_checkpoint(path), {}
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: cannot be read as safetensors ({reason})") from None


def read_spandrel_file(model: str) -> Mapping:
    """Read the weights of FILE in the model name "spandrel:FILE". Raises ValueError."""
    path = Path(model.removeprefix(PREFIX))
    try:
        return unwrap(read_weights_file(path)[0])[0]
    except ValueError as error:
        raise ValueError(f"--model {model}: {error}") from None


def import_file(
    path: Path, source: str | None = None, scale: int | None = None, res_scale: float | None = None
) -> Imported:
    """Import one of our networks from a file: our own export, or a layout that models.layouts knows.

    Raises ValueError, which names the file.
    """
    content, metadata = read_weights_file(path)
    try:
        if is_our_export(content, metadata):
            name, found, options, state = split_safetensors(content, metadata)
            name = f"{name}{path}" if name == PREFIX else name
            return Imported(name, found, options, state, [f"our export of {metadata.get('loss', 'a network')}"])
        return import_weights(content, source, scale, res_scale)
    except KeyError as missing:
        raise ValueError(f"{path}: lacks the entry {missing}") from None
    except (ValueError, AttributeError, IndexError, RuntimeError, StopIteration) as error:
        raise ValueError(f"{path}: {error}") from None
