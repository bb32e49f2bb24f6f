"""The weights of one image: layer by layer (TLW's Fig. 4), and over the epochs of a run (its Fig. 5)."""

import argparse
import zipfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import configs
from losses.weighting import fixed_sum, relaxed_bernoulli
from models.ops.tiled import TiledUpscaler
from training.watch import FOLDER

from .drawing import Drawn, Plan, Run, add_run_flags, correlation, gradient, read_images, read_run, show, show_scale

LARGEST = 512  # pixels of a side; of larger images the middle is drawn
BINS = 50


def choose_loss(run: Run, wanted: str | None) -> str:
    """Choose the loss to draw: `wanted`, else the first with a weighting network. Raises ValueError."""
    if not run.weightings:
        raise ValueError("--modelpath: no loss of this run has a weighting network; train one with --losses L1+TLW")
    return configs.choose(wanted or next(iter(run.weightings)), run.weightings, "loss with a weighting network")


def add_layers_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the run, the loss and the image."""
    add_run_flags(parser)
    parser.add_argument("--loss", help="draw this loss's weights (default: the first with a weighting network)")
    parser.add_argument("--image", metavar="FILE", help="(default: the run's first validation image)")
    parser.add_argument("--k", type=float, default=0.5, help="mean of the weights (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")


@torch.inference_mode()
def layers_of(weighting, hr: Tensor, sr: Tensor, k: float, seed: int = 0) -> dict[str, Tensor]:
    """The weighting network's values from layer to layer, each (1,3,H,W)."""
    values = weighting.logits(torch.cat([hr, sr], dim=1))
    mu = fixed_sum(values.sigmoid(), k)
    noise = torch.rand(mu.shape, generator=torch.Generator().manual_seed(seed))
    return {
        "last convolution": values,
        "sigmoid": values.sigmoid(),
        f"FixedSum, k = {k:g}": mu,
        "a sample": relaxed_bernoulli(mu, noise),
    }


@torch.inference_mode()
def draw_layers(args: argparse.Namespace) -> Drawn:
    """Draw Fig. 4: above, the values of the green channel; below, the distribution over all channels."""
    configs.expect(0 < args.k < 1, "k", args.k, "a value between 0 and 1")
    run = read_run(args.modelpath, args.best)
    loss = choose_loss(run, args.loss)
    name, (lr, hr) = next(iter(read_images(args.image, run.config).items()))
    sr = TiledUpscaler(run.nets[loss], 1 << 30)(lr).clamp(-1, 1)
    top, left = (max(0, (x - LARGEST) // 2) for x in hr.shape[-2:])
    hr, sr = (x[..., top : top + LARGEST, left : left + LARGEST] for x in (hr, sr))
    layers, rows = layers_of(run.weightings[loss], hr, sr, args.k, args.seed), []
    figure = Figure((14, 5.4), layout="constrained")
    axes = figure.subplots(2, len(layers) + 1, height_ratios=[1.5, 1])
    show(axes[0, 0], hr, f"reference: {name}")
    show_scale(axes[1, 0], "colours from the sigmoid on;\nthe last convolution's: its own range")
    for (above, below), (title, values) in zip(axes.T[1:], layers.items()):
        limits = (None, None) if title == "last convolution" else (0, 1)
        show(above, values[0, 1], title, cmap="inferno", vmin=limits[0], vmax=limits[1], interpolation="nearest")
        counts, edges = np.histogram(values.numpy(), bins=BINS, range=None if limits[0] is None else limits)
        share = counts / counts.sum()
        below.stairs(share, edges, fill=True, color="C0")
        below.axvline(values.mean().item(), color="black", linewidth=1)
        below.set(xlabel=f"mean {values.mean():.3f}, deviation {values.std():.3f}", yticks=[])
        rows += [
            {"layer": title, "from": f"{a:.5g}", "to": f"{b:.5g}", "share": f"{c:.6g}"}
            for a, b, c in zip(edges, edges[1:], share)
        ]
    axes[1, 1].set_ylabel("distribution")
    return Drawn(figure, rows, dpi=100)


def add_epochs_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the run, the loss, the image and the number of epochs."""
    parser.add_argument("--modelpath", type=Path, required=True, metavar="RUN", help="folder of a run with --watch")
    parser.add_argument("--loss", help="draw this loss's weights (default: the first with any)")
    parser.add_argument("--image", metavar="NAME", help="draw this watched image (default: the first)")
    parser.add_argument("--columns", type=int, default=8, metavar="N", help="number of epochs to draw (default: 8)")


def read_watched(run: Path) -> dict[int, dict[str, np.ndarray]]:
    """Read what --watch kept, by epoch or, with --validate-every, by step. Raises ValueError."""
    paths = sorted((run / FOLDER).glob("step_*.npz")) or sorted((run / FOLDER).glob("*.npz"))
    if not paths:
        raise ValueError(f"--modelpath {run}: no {FOLDER}/*.npz there; train with --watch 1")
    found = {}
    for path in paths:
        try:
            with np.load(path) as file:
                found[int(path.stem.removeprefix("step_"))] = dict(file)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cannot be read ({error}); remove it") from None
    return found


def describe(weights: Tensor, hr: Tensor, sr: Tensor) -> dict[str, float]:
    """Mean and deviation of a weight map (H,W), and its correlations. hr, sr: (3,H,W)."""
    return {
        "mean": weights.mean().item(),
        "deviation": weights.std().item(),
        "with |sr - hr|": correlation(weights, (sr - hr).abs().mean(dim=0)),
        "with edges": correlation(weights, gradient(hr)),
        "with brightness": correlation(weights, hr.mean(dim=0)),
        "with saturation": correlation(weights, hr.amax(dim=0) - hr.amin(dim=0)),
    }


def draw_epochs(args: argparse.Namespace) -> Drawn:
    """Draw Fig. 5: weights above, SR images below, for epochs from the first to the last."""
    configs.expect(args.columns > 1, "columns", args.columns, "2 or more")
    kept = read_watched(args.modelpath)
    first, unit = kept[min(kept)], "step" if any((args.modelpath / FOLDER).glob("step_*.npz")) else "epoch"
    images = list(dict.fromkeys(key.split("/")[0] for key in first))
    image = configs.choose(args.image or images[0], images, "watched image")
    losses = [key.split("/")[1] for key in first if key.startswith(f"{image}/") and key.endswith("/weights")]
    if not losses:
        raise ValueError(f"--modelpath {args.modelpath}: no loss of this run has a weighting network")
    loss = configs.choose(args.loss or losses[0], losses, "loss with a weighting network")

    def of(epoch: int, key: str) -> Tensor:
        return torch.from_numpy(kept[epoch][f"{image}/{key}"].astype(np.float32) / 255)

    rows, epochs = [], [epoch for epoch, found in sorted(kept.items()) if f"{image}/{loss}/weights" in found]
    for epoch in epochs:
        hr, sr = (of(epoch, key).permute(2, 0, 1) for key in ("hr", f"{loss}/sr"))
        numbers = describe(of(epoch, f"{loss}/weights"), hr, sr)
        k = float(kept[epoch][f"{image}/{loss}/k"])
        rows.append({unit: epoch, "k": round(k, 4)} | {name: round(x, 4) for name, x in numbers.items()})
    chosen = [epochs[i] for i in np.unique(np.linspace(0, len(epochs) - 1, args.columns).round().astype(int))]
    hr = of(chosen[0], "hr")
    figure = Figure((1.55 * (len(chosen) + 1), 3.7), layout="constrained")
    axes = figure.subplots(2, len(chosen) + 1)
    show(axes[0, 0], hr.permute(2, 0, 1)[None] * 2 - 1, f"{image}, {loss}")
    show_scale(axes[1, 0], "weights")
    for (above, below), epoch in zip(axes.T[1:], chosen):
        row = next(row for row in rows if row[unit] == epoch)
        show(
            above,
            of(epoch, f"{loss}/weights"),
            f"{unit} {epoch}",
            f"k = {row['k']:.2f}",
            cmap="inferno",
            vmin=0,
            vmax=1,
        )
        show(below, of(epoch, f"{loss}/sr").permute(2, 0, 1)[None] * 2 - 1)
    axes[0, 1].set_ylabel("weights", fontsize=9)
    axes[1, 1].set_ylabel("SR", fontsize=9)
    return Drawn(figure, rows)


LAYERS = Plan("A weight map, layer by layer: Fig. 4 of the TLW paper.", add_layers_flags, draw_layers)
EPOCHS = Plan("Weights over the epochs: Fig. 5 of the TLW paper.", add_epochs_flags, draw_epochs)
