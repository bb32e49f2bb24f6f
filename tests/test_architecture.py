"""Imports point down, files stay short, whatever is public says what it does; and each rule fails once it is broken."""

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 420  # lines of a file

LIBRARIES = {"models", "losses", "metrics", "data", "configs"}
COMMANDS = {"train", "val", "convert", "export", "infer", "report"}
# Who may import what of ours, besides itself.
MAY_IMPORT = {
    **dict.fromkeys(LIBRARIES, set()),
    "runs": LIBRARIES,
    "training": LIBRARIES | {"runs"},
    **dict.fromkeys(COMMANDS, LIBRARIES | {"runs", "training"}),
    "reproduce": LIBRARIES | {"runs", "training"} | COMMANDS,
    "benchmarks": LIBRARIES | {"runs", "training", "reproduce"} | COMMANDS,
}


class File:
    """A Python file of the project under root."""

    def __init__(self, path: Path, root: Path = ROOT):
        self.path = path
        self.name = path.relative_to(root).as_posix()
        self.parts = path.relative_to(root).parts
        self.part = self.parts[0].removesuffix(".py")
        self.text = path.read_text()
        self.tree = ast.parse(self.text)

    def imports(self, at_once: bool = False) -> set[str]:
        """The packages that it imports anywhere, or, at_once, outside of functions; no relative ones."""
        functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)] if at_once else []
        later = {id(node) for function in functions for node in ast.walk(function)}
        nodes = [node for node in ast.walk(self.tree) if id(node) not in later]
        plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return plain | {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0}


def files_of(root: Path) -> list[File]:
    """The project's files under root, but for its tests."""
    found = (path for path in sorted(root.glob("**/*.py")) if path.relative_to(root).parts[0] not in ("tests", "build"))
    return [File(path, root) for path in found if not any(p[0] == "." for p in path.relative_to(root).parts)]


FILES = files_of(ROOT)
OURS = {file.part for file in FILES}


def listed(name: str) -> set[str]:
    """The modules of the packages that a requirements file lists."""
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage"}
    lines = (ROOT / name).read_text().split()
    return {modules.get(package, package) for package in (re.match(r"[\w-]*", line)[0] for line in lines)}


# The rules: a file -> the ways in which it breaks the rule.


def imports_point_down(file: File) -> set[str]:
    return (file.imports() & set(MAY_IMPORT)) - {file.part} - MAY_IMPORT.get(file.part, set())


def libraries_import_themselves_relatively(file: File) -> set[str]:
    """So that each can be installed under another name; and they stay inside."""
    depths = {node.level for node in ast.walk(file.tree) if isinstance(node, ast.ImportFrom)}
    out = {f"{depth} dots" for depth in depths if depth > len(file.parts) - 1}
    return out | (file.imports() & {file.part} if file.part in LIBRARIES else set())


def imports_are_required(file: File) -> set[str]:
    """What is optional is imported where it is used, by a function that says how to install it."""
    foreign = {at_once: file.imports(at_once) - sys.stdlib_module_names - set(MAY_IMPORT) for at_once in (True, False)}
    optional = listed("requirements-dev.txt")
    at_once = listed("requirements.txt") | (optional if file.part in ("reproduce", "benchmarks") else set())
    return (foreign[True] - at_once) | (foreign[False] - listed("requirements.txt") - optional)


def only_commands_are_at_the_top(file: File) -> set[str]:
    return {file.part} - COMMANDS if len(file.parts) == 1 else set()


def no_drawer_for_odds_and_ends(file: File) -> set[str]:
    return {file.path.stem, file.path.parent.name} & {"utils", "util", "helpers", "common", "misc"}


def files_stay_short(file: File) -> set[str]:
    lines = len(file.text.splitlines())
    return {f"{lines} lines"} if lines > LONGEST else set()


def what_is_public_is_documented(file: File) -> set[str]:
    """The file, public classes, functions of more than five lines and methods of more than ten.

    What a class's docstring or the command line's help says already is left out: forward, main, parse.
    """
    found = set() if ast.get_docstring(file.tree) else {"the file"}

    def look(body, prefix=""):
        for node in body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
                continue
            small = isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno < (10 if prefix else 5)
            if not small and node.name not in ("forward", "main", "parse") and not ast.get_docstring(node):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{node.name}.")

    look(file.tree.body)
    return found


def docstrings_begin_plainly(file: File) -> set[str]:
    """Their first line is an imperative or a noun phrase of at most 100 characters."""
    if file.part not in ("models", "losses", "metrics", "runs", "training"):
        return set()
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(file.tree) if isinstance(node, kinds)]
    first = {text.split("\n")[0] for text in texts}
    wrong = r"(Within|What|Whether|Where|When|Which|How|Why)\b"
    return {line for line in first if len(line) > 100 or re.match(wrong, line)}


RULES: dict[Callable, tuple[str, str, set[str]]] = {
    # the rule: a file that breaks it, its content, and what the rule says
    imports_point_down: ("models/edsr.py", "def f():\n    from losses.base import Loss", {"losses"}),
    libraries_import_themselves_relatively: ("models/ops/a.py", "from models import edsr", {"models"}),
    imports_are_required: ("losses/a.py", "import pandas", {"pandas"}),
    only_commands_are_at_the_top: ("rundir.py", "", {"rundir"}),
    no_drawer_for_odds_and_ends: ("data/utils.py", "", {"utils"}),
    files_stay_short: ("data/a.py", "\n" * (LONGEST + 1), {f"{LONGEST + 1} lines"}),
    what_is_public_is_documented: ("data/a.py", "class A:\n    pass", {"the file", "A"}),
    docstrings_begin_plainly: ("runs/a.py", '"""What this is."""', {"What this is."}),
}
MORE = [  # other ways to break them
    (imports_point_down, "runs/a.py", "import training.state", {"training"}),
    (imports_point_down, "training/a.py", "from train import em_step", {"train"}),
    (imports_point_down, "convert.py", "import val", {"val"}),
    (imports_point_down, "metrics/a.py", "import data.images as images", {"data"}),
    (libraries_import_themselves_relatively, "losses/a.py", "from ..models import edsr", {"2 dots"}),
    (imports_are_required, "losses/a.py", "def f():\n    import pandas", {"pandas"}),
    (imports_are_required, "losses/a.py", "import pytest", {"pytest"}),
    (no_drawer_for_odds_and_ends, "data/helpers/a.py", "", {"helpers"}),
    (docstrings_begin_plainly, "losses/a.py", '"""A."""\ndef f():\n    """' + "a " * 51 + '."""', {"a " * 51 + "."}),
    (what_is_public_is_documented, "data/a.py", '"""A."""\ndef f():\n' + "    x = 1\n" * 9, {"f"}),
]


def test_the_parts_are_found():
    assert set(MAY_IMPORT) == OURS and len(FILES) > 20


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule):
    assert {file.name: broken for file in FILES if (broken := rule(file))} == {}


BROKEN = [(rule, *case) for rule, case in RULES.items()] + MORE


@pytest.mark.parametrize(
    "rule, name, content, words", BROKEN, ids=[f"{i}-{case[0].__name__}" for i, case in enumerate(BROKEN)]
)
def test_rule_fails_once_broken(rule, name, content, words, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('"""A file of which only the name may break a rule."""\n\nimport torch\n')
    (file,) = files_of(tmp_path)
    by_name = {only_commands_are_at_the_top, no_drawer_for_odds_and_ends}
    assert {other for other in RULES if other(file)} == {rule} & by_name
    path.write_text(content)
    (file,) = files_of(tmp_path)
    assert rule(file) == words
