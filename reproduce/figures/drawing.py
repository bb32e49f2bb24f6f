"""Shared by the figures: what a figure is, reading images and runs, drawing images."""

import argparse
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import configs
from configs import Config
from data import list_images, make_pair, read_rgb
from losses import build_loss
from losses.weighting import WeightingNet
from metrics.evaluate import PROTOCOLS
from runs.checkpoint import load_networks, load_states

DPI = 120


class Drawn(NamedTuple):
    """A figure and the numbers behind it."""

    figure: Figure
    rows: list[dict]
    dpi: int = DPI

    def png(self) -> bytes:
        """The figure as the content of a PNG file."""
        file = io.BytesIO()
        self.figure.savefig(file, dpi=self.dpi)
        return file.getvalue()


class Plan(NamedTuple):
    """A figure's description, its flags, and its drawing function, which may raise ValueError."""

    about: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    draw: Callable[[argparse.Namespace], Drawn]


class Run(NamedTuple):
    """The networks of a trained run, in eval mode, by loss."""

    config: Config
    nets: dict[str, nn.Module]
    weightings: dict[str, WeightingNet]  # only of losses that have one
    judges: list[str]


def add_run_flags(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """Add the flags that name a run, or several."""
    parser.add_argument(
        "--modelpath",
        type=Path,
        required=True,
        metavar="RUN",
        help="folder of a run" + ", or of several of one scale" * many,
        **({"nargs": "+"} if many else {}),
    )
    parser.add_argument("--best", action="store_true", help="use each loss's best network (default: the last)")


def read_run(path: Path, best: bool = False, losses=None) -> Run:
    """Read the run in path, or only these losses of it. Raises ValueError."""
    which = "best" if best else "last"
    config, nets, judges = load_networks(path, which, losses)
    configs.expect(config.color == "rgb", "modelpath", path, "a run on RGB images; this one is on grey")
    _, states = load_states(path, which, losses)
    weightings = {}
    for name, state in states.items():
        variant = config.variants[name]
        if "TLW" in variant.loss:
            loss = build_loss(variant.loss, variant.config, nets[name])
            loss.load_state_dict(state["loss"])
            if loss.weighting is not None:
                weightings[name] = loss.weighting.eval()
    return Run(config, {name: net.eval() for name, net in nets.items()}, weightings, judges)


def read_images(named: str | None, config: Config, protocol: str | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Read lr (1,3,h,w) and hr (1,3,H,W) in [-1,1] by name, of a file, a folder or the validation images.

    They are cropped and rounded as by the protocol (default: the run's). Raises ValueError.
    """
    p = PROTOCOLS[protocol or config.protocol]
    paths = [Path(named)] if named and os.path.isfile(named) else list_images([named] if named else config.valpath)
    pairs = {
        path.name: make_pair(read_rgb(path), config.scale, p.multiple or config.scale, p.eight_bit) for path in paths
    }
    return {name: (lr[None], hr[None]) for name, (lr, hr) in pairs.items()}


def check_box(box, hr: Tensor) -> tuple:
    """The index of the square (top, left, side) in images (1,3,H,W). Raises ValueError if it is outside."""
    top, left, side = box
    height, width = hr.shape[-2:]
    if min(top, left) < 0 or side < 8 or top + side > height or left + side > width:
        shown = " ".join(map(str, box))
        raise ValueError(f"--box {shown}: expected TOP LEFT SIZE of 8 pixels or more, within {height}x{width}")
    return (..., slice(top, top + side), slice(left, left + side))


def show(ax: Axes, image: Tensor, title: str = "", below: str = "", **kind) -> None:
    """Draw an image (1,3,H,W) in [-1,1] or a map (H,W), with title and text; kind: imshow's options."""
    picture = image if image.dim() == 2 else image[0].permute(1, 2, 0).clamp(-1, 1) / 2 + 0.5
    ax.imshow(picture.cpu().numpy(), **kind)
    ax.set_title(title.replace("[", "\n["), fontsize=9)
    ax.set_xlabel(below, fontsize=8)
    ax.set(xticks=[], yticks=[])


def show_scale(ax: Axes, label: str) -> None:
    """Draw the colour scale of the weights, from 0 to 1, on empty axes."""
    ax.axis("off")
    bar = ax.inset_axes((0.05, 0.75, 0.9, 0.1))
    bar.imshow(torch.linspace(0, 1, 256)[None].numpy(), cmap="inferno", aspect="auto", extent=(0, 1, 0, 1))
    bar.set_xlabel(label, fontsize=8)
    bar.tick_params(labelsize=8)
    bar.set(xticks=[0, 0.5, 1], yticks=[])


def square(image: Tensor) -> tuple[Tensor, int, int]:
    """Pad an image (1,3,H,W) with white to a square; return it and the padding at the top and the left."""
    height, width = image.shape[-2:]
    down, across = max(0, width - height), max(0, height - width)
    top, left = down // 2, across // 2
    return F.pad(image, (left, across - left, top, down - top), value=1.0), top, left


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two maps; 0 if one is constant."""
    a, b = (x.flatten().double() - x.double().mean() for x in (a, b))
    norm = a.norm() * b.norm()
    return (a @ b / norm).item() if norm > 0 else 0.0


def gradient(hr: Tensor) -> Tensor:
    """The gradient magnitude of an image's mean over channels: (C,H,W) -> (H,W)."""
    rows, columns = torch.gradient(hr.mean(dim=0))
    return (rows.square() + columns.square()).sqrt()
