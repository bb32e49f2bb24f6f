"""README and docs: the loop runs, command lines are ones that the programs take, links lead somewhere, and it is short."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

import configs
import convert
import export
import infer
import report
import val
from losses import LOSSES
from models import SR_MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tests/README.md"]
COMMANDS = {
    match[1].split("   ")[0].strip(): page.name
    for page in PAGES
    for match in re.finditer(
        r"^(?:.*(?:&& |\| ))?(?:torchrun .* |python )((?:train|val|infer|export|report|convert)\.py[^\n`#|]*)",
        re.sub(r"\\\n\s*", "", page.read_text()),  # a command may go on in the next line
        re.M,
    )
}
PARSERS = {"val.py": val.parse, "infer.py": infer.parse, "export.py": export.parse, "report.py": report.parse}


def test_readme_is_short():
    assert len(README.splitlines()) <= 150 and len(README.split()) <= 1500


def test_the_loop_trains_both_networks():
    code = re.search(r"```python\n(.*?)```", README, re.S)[1].replace("from tlw.", "from ")
    assert 'LPIPS("alex")' in code and "range(100)" in code
    code = code.replace('LPIPS("alex")', "(lambda a, b: (a - b).abs().mean((1, 2, 3)))").replace(
        "range(100)", "range(1)"
    )
    torch.manual_seed(0)
    net = SR_MODELS["EDSR"](scale=2, channels=8, blocks=1)
    before = [p.clone() for p in net.parameters()]
    scope = {"net": net, "loader": [(torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1)]}
    exec(code, scope)
    assert all(not torch.equal(p, b) for p, b in zip(net.parameters(), before))
    assert all(p.grad is not None for p in scope["tlw"].helper.parameters())


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *words = shlex.split(command)
    if {"--help", "..."} & set(words) or command.endswith("…") or "--init" in words:
        return
    if program == "train.py":
        if not {"--load", "--resume", "--auto-resume"} & set(words):
            config = configs.load(words)
            assert config.model in SR_MODELS or config.model.startswith("spandrel:")
            assert {variant.loss for variant in config.variants.values()} <= set(LOSSES)
    elif program in PARSERS:
        PARSERS[program](words)
    else:
        assert program == "convert.py" and convert.parse(words)


def test_commands_are_found():
    assert {command.split()[0] for command in COMMANDS} >= {"train.py", "val.py", "infer.py", "export.py", "report.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_are_named_are_there(page):
    for name in set(re.findall(r"python -m ((?:reproduce|benchmarks|data)\.[a-z_0-9.]+)", page.read_text())):
        assert importlib.util.find_spec(name.rstrip(".")), name
