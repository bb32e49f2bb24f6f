"""README's first picture: crops of one photograph by each loss of a run, and a map of TLW's weights."""

import argparse

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from metrics.evaluate import PROTOCOLS, finish
from metrics.fidelity import psnr_y
from models.ops.tiled import TiledUpscaler
from training.figures import weights_of
from training.validation import BICUBIC, metrics_on

from .drawing import Drawn, Plan, add_run_flags, check_box, read_images, read_run, show
from .weights import choose_loss

K = 0.5  # mean of the weights that are drawn
DPI = 88  # keeps the file below 500 KB


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the run, its losses, the photograph and the crop."""
    add_run_flags(parser)
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="only these, in this order (default: all)")
    parser.add_argument("--weighting", metavar="LOSS", help="draw this loss's weights (default: the first with any)")
    parser.add_argument("--image", default="skimage:chelsea", help="a file, or skimage:NAME (default: skimage:chelsea)")
    parser.add_argument("--box", type=int, nargs=3, default=(60, 90, 120), metavar=("TOP", "LEFT", "SIZE"))
    parser.add_argument("--metric", default="squeeze", help="metric beside PSNR-Y; choose one that was not the judge")
    parser.add_argument("--judge-weights", nargs="+", metavar="FILE", help="local backbone files (default: the run's)")


@torch.inference_mode()
def draw(args: argparse.Namespace) -> Drawn:
    """Draw the weights over the photograph, then the crop by each method, with scores of the photograph."""
    run = read_run(args.modelpath, args.best, args.losses)
    weighted = choose_loss(run, args.weighting)
    name, (lr, hr) = next(iter(read_images(args.image, run.config, "paper").items()))
    weights = tuple(args.judge_weights or run.config.judge_weights + run.config.extractor_weights)
    (metric,) = metrics_on("cpu", [args.metric], weights).values()
    upscalers = {"bicubic": BICUBIC["paper"](run.config.scale)} | {
        loss: TiledUpscaler(net, 1 << 30) for loss, net in run.nets.items()
    }
    images = {loss: finish(upscale(lr).float(), PROTOCOLS["paper"]) for loss, upscale in upscalers.items()}
    weight = weights_of(run.weightings[weighted], hr, images[weighted], K)

    crop = check_box(args.box, hr)
    top, left, side = args.box
    figure, rows = Figure((2.6 * (len(images) + 2), 2.9), layout="constrained"), []
    wide = hr.shape[3] / hr.shape[2]
    axes = figure.subplots(1, len(images) + 2, width_ratios=[wide] + [1] * (len(images) + 1))
    show(axes[0], hr, "weights of the loss", f"k = {K}: dark 0, bright 1")
    axes[0].imshow(weight[0].mean(dim=0).numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.75)
    axes[0].add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="white", linewidth=1.5))
    for ax, (loss, sr) in zip(axes[1:], images.items()):
        numbers = {"PSNR-Y": psnr_y(sr, hr).item(), metric.name: metric(sr, hr).item()}
        psnr, distance = numbers.values()
        show(ax, sr[crop], loss.split("[")[0], f"{psnr:.2f} dB, {metric.name} {distance:.3f}")
        rows.append({"image": name, "loss": loss} | {key: round(value, 4) for key, value in numbers.items()})
    show(axes[-1], hr[crop], "reference", f"PSNR-Y up, {metric.name} down")
    return Drawn(figure, rows, DPI)


HERO = Plan("README's first picture: crops of one photograph, and TLW's weights.", add_flags, draw)
