"""The names of networks, losses and metrics, read from their source without importing torch.

The dictionaries there are the only place that defines a name. Only their keys are read here, and the defaults of the
networks' options, which must therefore be literals.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# A kind of name: the file and the dictionary that has them as keys.
TABLES = {
    "model": ("models/__init__.py", "SR_MODELS"),
    "loss": ("losses/__init__.py", "LOSSES"),
    "judge": ("metrics/judges.py", "JUDGES"),
    "perceptual metric": ("metrics/judges.py", "METRICS"),
    "protocol": ("metrics/evaluate.py", "PROTOCOLS"),
}


@cache
def _tree(file: str) -> Any:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def _value(file: str, name: str) -> Any:
    """The expression that the file assigns to name. Raises LookupError."""
    for node in _tree(file).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value
    raise LookupError(f"{file}: no {name}")


def _evaluated(node: ast.expr):
    """The value of an expression of numbers, text and tuples, such as (6,) * 4 or 2 << 30."""
    return eval(compile(ast.Expression(node), "constant", "eval"), {"__builtins__": {}})  # safe: our own source


def constant(file: str, name: str):
    """The value of a constant in one of our files."""
    return _evaluated(_value(file, name))


def names(kind: str) -> list[str]:
    """All names of a kind, a key of TABLES, in the order of its dictionary."""
    return _keys(*TABLES[kind])


def _keys(file: str, name: str) -> list[str]:
    """The keys of a dictionary, including those of the dictionaries that it unpacks with **."""
    entries = _value(file, name)
    pairs = zip(entries.keys, entries.values)
    return [text for key, x in pairs for text in ([ast.literal_eval(key)] if key else _keys(file, x.id))]


def model_options(model: str) -> dict[str, object]:
    """The options of a network and their defaults, {"channels": 64}, but for `colours` (see --color)."""
    file, table = TABLES["model"]
    entries = _value(file, table)
    entry: Any = dict(zip(names("model"), entries.values))[model]
    given: dict[str, object] = {}
    if isinstance(entry, ast.Call):  # partial(HAT, embed=96)
        given = {str(keyword.arg): _evaluated(keyword.value) for keyword in entry.keywords}
        entry = entry.args[0]
    module = next(node.module for node in _tree(file).body if entry.id in [x.name for x in getattr(node, "names", ())])
    body = next(node for node in _tree(f"models/{module}.py").body if getattr(node, "name", "") == entry.id).body
    arguments = next(node for node in body if getattr(node, "name", "") == "__init__").args
    positional = arguments.args[-len(arguments.defaults) :] if arguments.defaults else []
    pairs = [*zip(positional, arguments.defaults), *zip(arguments.kwonlyargs, arguments.kw_defaults)]
    found = {argument.arg: _evaluated(default) for argument, default in pairs if default is not None} | given
    return {name: value for name, value in found.items() if name != "colours"}


def shown_options(options: dict[str, object]) -> str:
    """Options as --model-options takes them: "channels=64 depths=[6,6]"."""
    lists = {name: f"[{','.join(map(str, value))}]" for name, value in options.items() if isinstance(value, tuple)}
    return " ".join(f"{name}={value}" for name, value in (options | lists).items())
