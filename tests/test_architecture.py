"""Imports point down, files stay short, and whatever is public says what it does."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 320  # lines of a file
FILES = sorted(
    path for path in ROOT.glob("**/*.py")
    if path.relative_to(ROOT).parts[0] not in ("tests", "checkpoints") and not any(p[0] == "." for p in path.relative_to(ROOT).parts)
)
OURS = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in FILES}

# Who may import what of ours, besides itself.
MAY_IMPORT = {
    "models": set(),
    "metrics": {"models", "tensors"},
    "data": set(),
    "configs": set(),
    "rundir": {"tensors"},
    "tensors": set(),
    "locks": set(),
    "signals": set(),
    "states": set(),
    "files": {"rundir"},
    "distributed": {"models"},
    "figures": set(),
    "ending": {"configs", "data", "distributed", "figures", "locks", "prepared", "rundir", "signals", "val"},
    "losses": {"models"},
    "learner": {"configs", "distributed", "losses", "models", "networks", "states"},
    "prepared": {"configs", "data", "distributed", "files", "learner", "locks", "losses", "metrics", "networks", "rundir",
                 "states", "val"},
    "heap": set(),
    "networks": {"configs", "heap", "models", "rundir", "states"},
    "val": {"configs", "data", "files", "metrics", "models", "networks", "rundir", "signals"},
    "convert": {"configs", "files", "models", "networks", "rundir", "states"},
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
    assert {"train", *MAY_IMPORT} <= OURS and len(FILES) > 20


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) in MAY_IMPORT], ids=label)
def test_imports_point_down(path):
    assert imported(path) <= MAY_IMPORT[part_of(path)]


def test_nothing_imports_the_training_or_the_reproduction():
    for path in FILES:
        allowed = {part_of(path)} | ({"train"} if part_of(path) in ("reproduce", "benchmarks") else set())
        assert not imported(path) & ({"train", "reproduce", "benchmarks"} - allowed), label(path)


def test_only_training_asks_for_losses():
    inside = ("reproduce", "benchmarks", "train", "prepared", "learner")
    assert [label(path) for path in FILES if "losses" in imported(path) and part_of(path) not in inside] == []


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
