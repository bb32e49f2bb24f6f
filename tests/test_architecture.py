"""Imports point down, files stay short, and whatever is public says what it does."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 390  # lines of a file
FILES = sorted(
    path
    for path in ROOT.glob("**/*.py")
    if path.relative_to(ROOT).parts[0] not in ("tests", "checkpoints")
    and not any(p[0] == "." for p in path.relative_to(ROOT).parts)
)
OURS = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}

LIBRARIES = {"models", "losses", "metrics", "data", "configs"}
COMMANDS = {"train", "val", "convert"}
# Who may import what of ours, besides itself.
MAY_IMPORT = {
    **dict.fromkeys(LIBRARIES, set()),
    "runs": LIBRARIES,
    "training": LIBRARIES | {"runs"},
    **dict.fromkeys(COMMANDS, LIBRARIES | {"runs", "training"}),
    "reproduce": LIBRARIES | {"runs", "training"} | COMMANDS,
    "benchmarks": LIBRARIES | {"runs", "training"} | COMMANDS,
}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """What a file imports anywhere, inside functions too; relative imports stay inside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            depth = len(path.relative_to(ROOT).parts) - 1
            assert node.level <= depth, f"{label(path)} reaches out of its package by a relative import"
    return names


def imported(path: Path) -> set[str]:
    """The parts of ours that a file imports."""
    return (imports(path) & OURS) - {part_of(path)}


def listed(name: str) -> set[str]:
    """The modules of the packages that a requirements file lists."""
    modules = {"pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage"}
    lines = (ROOT / name).read_text().split()
    return {modules.get(package, package) for package in (re.match(r"[\w-]*", line)[0] for line in lines)}


@pytest.mark.parametrize("path", FILES, ids=label)
def test_what_is_imported_is_required(path):
    foreign = imports(path) - sys.stdlib_module_names - OURS
    beside = listed("requirements-dev.txt") if part_of(path) in ("reproduce", "benchmarks") else set()
    assert foreign <= listed("requirements.txt") | beside


def test_the_parts_are_found():
    assert set(MAY_IMPORT) == OURS and len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=label)
def test_imports_point_down(path):
    assert imported(path) <= MAY_IMPORT[part_of(path)]


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) in LIBRARIES], ids=label)
def test_libraries_import_themselves_relatively(path):
    """So that each can be installed under another name."""
    assert part_of(path) not in imports(path)


def test_only_commands_are_at_the_top():
    assert {path.stem for path in ROOT.glob("*.py")} == COMMANDS


def test_no_drawer_for_odds_and_ends():
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", FILES, ids=label)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def undocumented(tree: ast.Module) -> list[str]:
    """Public classes, functions of more than five lines and methods of more than ten, without a docstring.

    What a class's docstring or the command line's help says already is left out: forward, main, parse.
    """
    found = []

    def look(body, prefix=""):
        for node in body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
                continue
            small = isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno < (10 if prefix else 5)
            if not small and node.name not in ("forward", "main", "parse") and not ast.get_docstring(node):
                found.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                look(node.body, f"{node.name}.")

    look(tree.body)
    return found


@pytest.mark.parametrize("path", FILES, ids=label)
def test_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the file does not say what it is"
    assert undocumented(tree) == []
