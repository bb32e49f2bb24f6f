"""Read YAML, paths, and values written as in YAML. Ambiguous input is refused."""

import os
import re
from pathlib import Path

import yaml

from .errors import expect


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses duplicate keys, of which PyYAML takes the last, and aliases."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):  # a few lines of nested aliases can fill the memory
            raise yaml.YAMLError("an alias (*); write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict:
    """Read the mapping in a YAML file, with hyphens in its keys as underscores; {} if the file is empty.

    Raises ValueError.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        raise ValueError(f"--config {path}: no such file") from None
    except Exception as error:  # wrong tags, deep nesting: PyYAML raises anything from KeyError to RecursionError
        raise ValueError(f"--config {path}: cannot be read ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: expected lines of `name: value`, found a {type(values).__name__}")
    names = {str(key).replace("-", "_"): value for key, value in values.items()}
    expect(len(names) == len(values), "config", path, "each key once, with hyphens or with underscores")
    return names


def expand_path(path: str) -> str:
    """Expand ~, $VAR and ${VAR}, as a shell does. Raises ValueError if a variable in braces is not set."""
    for name in re.findall(r"\$\{(\w+)\}", path):
        if name not in os.environ:
            raise ValueError(f"{path}: the environment variable {name} is not set; set it, or write the path out")
    return os.path.expandvars(os.path.expanduser(path))


def has_commas(text: str) -> bool:
    """True if text has commas outside brackets: several values, not one."""
    while (inner := re.sub(r"\[[^\[\]]*\]", "", text)) != text:
        text = inner
    return "," in text


def parse_pairs(words: list[str], flag: str, example: str) -> dict:
    """Parse ["blocks=4", "depths=[6,6]"] into {"blocks": 4, "depths": [6, 6]}.

    Raises ValueError, which names the flag.
    """
    pairs = {}
    for word in words:
        if has_commas(word):
            raise ValueError(f"{flag} {word}: separate with spaces: {flag} {' '.join(word.split(','))}")
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{flag} {word}: expected NAME=VALUE, such as {example}")
        if name in pairs:
            raise ValueError(f"{flag} {word}: {name} is given twice; leave one out")
        try:
            pairs[name] = yaml.load(value, Loader=UniqueKeyLoader)
        except Exception:  # as in read_yaml
            raise ValueError(f"{flag} {word}: {value} is not a value; expected one such as 4, 0.5 or [6,6]") from None
    return pairs
