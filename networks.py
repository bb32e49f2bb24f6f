"""SR networks from settings and from a run's checkpoints."""

from pathlib import Path

import torch
from torch import nn

import configs
import rundir
from models import SR_MODELS


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, or the best one this machine has. Raises ValueError where it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"--device {name}: not available here ({reason}); use --device cpu, or leave it out") from None
    return device


def build_network(config: configs.Config) -> nn.Module:
    """The SR network that the settings name, with fresh weights. Raises ValueError on a wrong name or option."""
    build = SR_MODELS[configs.choose(config.model, SR_MODELS, "model")]
    try:
        return build(scale=config.scale, **(config.model_options or {}))
    except TypeError as error:
        raise ValueError(f"--model-options {config.model_options}: {str(error).split('() ')[-1]}") from None


def fill_network(net: nn.Module, state: dict | None, source: str, config: configs.Config) -> None:
    """Load state into net after checking that every name and shape fits. Raises ValueError, net untouched."""
    own = net.state_dict()
    wrong = [name for name in own if name not in (state or {}) or state[name].shape != own[name].shape]
    extra = [name for name in (state or {}) if name not in own]
    if wrong or extra:
        example = (wrong + extra)[0]
        raise ValueError(
            f"{source}: not a checkpoint of {config.model} x{config.scale} with options {config.model_options or {}} "
            f"({len(wrong) + len(extra)} entries do not fit, the first: {example})"
        )
    net.load_state_dict(state)


def load_networks(run: Path, which: str, losses=None) -> tuple[configs.Config, dict[str, nn.Module]]:
    """The settings of a run and its SR networks by loss (all, or those named). Raises ValueError.

    which: "best" (each loss's epoch of the lowest LPIPS) or "last".
    """
    if not (run / "config.yaml").is_file():
        released = sorted(run.glob("SRModel_*.pth"))
        remedy = f"convert the released files with: python convert.py {run}" if released else "expected a run's folder"
        raise ValueError(f"--modelpath {run}: no config.yaml there; {remedy}")
    config = configs.from_mapping(configs.read_yaml(run / "config.yaml"), source=str(run / "config.yaml"))
    networks = {}
    last = rundir.load_state(run / "last.pt").get("learners", {}) if which == "last" else {}
    for loss in [configs.choose(loss, config.losses, f"loss in {run}") for loss in losses or config.losses]:
        state = rundir.load_state(run / f"best_{loss}.pt") if which == "best" else last.get(loss, {})
        net = build_network(config)
        fill_network(net, state.get("net"), f"{run} ({which}, {loss})", config)
        networks[loss] = net
    return config, networks
