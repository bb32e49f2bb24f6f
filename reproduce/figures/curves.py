"""Functions drawn as curves: FixedSum (TLW's Fig. 2) and PSPL's attention."""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from losses.pspl import PSPL, attention
from losses.weighting import fixed_sum

from .drawing import Drawn, Plan

N = 1000  # elements of the paper's vectors
PAPERS_K, PAPERS_S = 0.3, 250
SUMS = (50, 150, 250, 300, 350, 450, 600, 900)
RATIOS = (0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.9)
EPOCHS = (0.5, 1, 2, 3, 5, 10, 30, 300)  # of PSPL's 300


def fixed_sum_of(x: Tensor, total: float, k: float) -> Tensor:
    """FixedSum of one element x of N elements with sum `total`, the others being equal: (P,) -> (P,)."""
    others = ((total - x) / (N - 1))[:, None].expand(-1, N - 1)
    return fixed_sum(torch.cat([x[:, None], others], dim=1)[:, None, None], k)[:, 0, 0, 0]


def no_flags(parser: argparse.ArgumentParser) -> None:
    """A figure without flags of its own."""


def draw_fixed_sum(args: argparse.Namespace) -> Drawn:
    """Draw Fig. 2a, k = 0.3 with sums S below and above k N; and 2b, S = 250 with k below and above S/N."""
    x, rows = torch.linspace(0, 1, 101, dtype=torch.float64), []
    figure = Figure((11.5, 4.4), layout="constrained")
    panels = (
        (f"(a) k = {PAPERS_K}, N = {N}", "S", [(total, PAPERS_K) for total in SUMS]),
        (f"(b) S = {PAPERS_S}, N = {N}", "k", [(PAPERS_S, k) for k in RATIOS]),
    )
    for ax, (title, varied, curves) in zip(figure.subplots(1, 2, sharey=True), panels):
        for number, (total, k) in enumerate(curves):
            y = fixed_sum_of(x, total, k)
            label = f"S = {total}" if varied == "S" else f"k = {k}"
            unchanged = abs(total - k * N) < 1e-9
            colour = "black" if unchanged else f"C{number}"
            ax.plot(x, y, label=label + " (as it is)" * unchanged, color=colour, linestyle="--" if unchanged else "-")
            rows += [
                {"panel": title[1], "k": k, "S": total, "x": round(a, 4), "FixedSum": round(b, 6)}
                for a, b in zip(x.tolist(), y.tolist())
            ]
        ax.set(title=title, xlabel="x, one of the components", xlim=(0, 1), ylim=(0, 1))
        ax.grid(alpha=0.3)
        handles, labels = ax.get_legend_handles_labels()
        order = slice(None, None, 1 if varied == "S" else -1)  # the top curve first
        ax.legend(handles[order], labels[order], fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.axes[0].set_ylabel("FixedSum(x, k)")
    return Drawn(figure, rows)


def add_attention_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of PSPL's settings."""
    parser.add_argument("--pspl-alpha", type=float, default=1.0, help="growth of sigma in an epoch (default: 1)")
    parser.add_argument("--pspl-beta", type=float, default=0.0, help="sigma at epoch 0 (default: 0)")
    parser.add_argument("--pspl-max", type=float, default=2.0, help="weight of the worst pixels (default: 2)")


def draw_attention(args: argparse.Namespace) -> Drawn:
    """Draw a pixel's weight by its SSIM, over the authors' 300 epochs of 1,000 steps."""
    loss = PSPL("L1", args.pspl_alpha, args.pspl_beta, args.pspl_max)
    similarity = torch.linspace(-1, 1, 201, dtype=torch.float64)
    figure, rows = Figure((10, 4.2), layout="constrained"), []
    left, right = figure.subplots(1, 2)
    for epoch in EPOCHS:
        w = attention(similarity, loss.sigma(epoch), loss.maximum)
        left.plot(similarity, w, label=f"{1000 * epoch:,.0f}")
        rows += [
            {"step": round(1000 * epoch), "sigma": loss.sigma(epoch), "SSIM": round(a, 4), "weight": float(f"{b:.6g}")}
            for a, b in zip(similarity.tolist(), w.tolist())
        ]
    left.set(xlabel="SSIM of a pixel's surroundings", ylabel="weight", xlim=(-1, 1), ylim=(0, 1.05 * loss.maximum))
    left.set_xticks([-1, -0.5, 0, 0.5, 1])
    left.grid(alpha=0.3)
    left.legend(title="step", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    epochs = np.geomspace(0.3, 300, 240)
    whole = torch.stack([attention(similarity, loss.sigma(epoch), loss.maximum) for epoch in epochs], dim=1)
    shown = right.pcolormesh(
        1000 * epochs, similarity.numpy(), whole.numpy(), cmap="inferno", vmin=0, vmax=loss.maximum
    )
    right.set(xscale="log", xlabel="step", ylabel="SSIM of a pixel's surroundings")
    figure.colorbar(shown, ax=right, label="weight")
    return Drawn(figure, rows)


FIXED_SUM = Plan("FixedSum, Fig. 2 of the TLW paper.", no_flags, draw_fixed_sum)
ATTENTION = Plan("PSPL's attention by SSIM and step.", add_attention_flags, draw_attention)
