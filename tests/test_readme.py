"""README's loop runs, and its command lines are ones that the programs take."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import configs
import val
from losses import LOSSES
from models import SR_MODELS

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = re.findall(r"python ((?:train|val)\.py[^\n`]*)", README)


def test_the_loop_trains_both_networks():
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
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
    monkeypatch.chdir(Path(__file__).parents[1])
    program, *words = shlex.split(command)
    if "--help" in words:
        return
    if program == "train.py" and "--load" not in words:
        config = configs.load(words)
        assert config.model in SR_MODELS and {variant.loss for variant in config.variants.values()} <= set(LOSSES)
    elif program == "val.py":
        val.parse(words)
