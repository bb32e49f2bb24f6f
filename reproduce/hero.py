"""README's first picture: crops of one photograph by each loss of a run, and where the weights of TLW lie.

python -m reproduce.hero --modelpath checkpoints/RUN --image skimage:chelsea --box 100 120 96 --metric squeeze
"""

import argparse
import io
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import configs
from losses.weighting import WeightingNet
from metrics.fidelity import psnr_y
from models.ops.tiled import TiledUpscaler
from runs.atomic import write_or_report
from runs.checkpoint import load_checkpoint, load_networks
from training.device import setup_device
from training.figures import weights_of
from training.validation import BICUBIC, metrics_on, read_validation_set

K = 0.5  # mean of the weights that are drawn


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = configs.OneLineParser(prog="reproduce.hero", description="Crops of one photograph, and TLW's weights.")
    parser.add_argument("--modelpath", type=Path, required=True, metavar="RUN", help="folder of a run")
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="of the run, in this order (default: all)")
    parser.add_argument("--weighting", default="L1+TLW", metavar="LOSS", help="whose weights (default: L1+TLW)")
    parser.add_argument("--image", default="skimage:chelsea", help="a folder of one image, or skimage:NAME")
    parser.add_argument("--box", type=int, nargs=3, default=(60, 90, 120), metavar=("TOP", "LEFT", "SIZE"))
    parser.add_argument("--metric", default="squeeze", help="the number beside PSNR-Y; take one that was not the judge")
    parser.add_argument("--judge-weights", nargs="+", default=(), metavar="FILE", help="local backbone files")
    parser.add_argument("--out", type=Path, default=Path("docs/hero.png"), metavar="FILE")
    return parser.parse_args(argv)


def show(ax, image: Tensor, title: str, below: str = "") -> None:
    """Draw image (1,3,H,W) in [-1,1] with a title and a line beneath."""
    ax.imshow(image[0].permute(1, 2, 0).clamp(-1, 1) / 2 + 0.5)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(below, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])


@torch.inference_mode()
def draw(args: argparse.Namespace) -> bytes:
    """The PNG of the picture. Raises ValueError for wrong input."""
    config, nets, _ = load_networks(args.modelpath, "last", args.losses)
    pairs = read_validation_set([args.image], config.scale, "paper")
    lr, hr = (x[None] for x in pairs[0])
    (metric,) = metrics_on("cpu", [args.metric], tuple(args.judge_weights)).values()
    images = {"bicubic": BICUBIC["paper"](config.scale)(lr)}
    images |= {name.split("[")[0]: TiledUpscaler(net.eval(), 1 << 30)(lr).clamp(-1, 1) for name, net in nets.items()}
    state = load_checkpoint(args.modelpath / "last.pt")["learners"][args.weighting]["loss"]
    weighting = WeightingNet()
    weighting.load_state_dict({name.removeprefix("helper."): x for name, x in state.items()})
    weights = weights_of(weighting, hr, images[args.weighting.split("[")[0]], K)

    top, left, size = args.box
    crop = (..., slice(top, top + size), slice(left, left + size))
    figure = Figure((13, 2.9), layout="constrained")
    wide = hr.shape[3] / hr.shape[2]
    axes = figure.subplots(1, len(images) + 2, width_ratios=[wide] + [1] * (len(images) + 1))
    show(axes[0], hr, "weights of the loss", f"k = {K}: dark 0, bright 1")
    axes[0].imshow(weights[0].mean(dim=0), cmap="inferno", vmin=0, vmax=1, alpha=0.75)
    axes[0].add_patch(Rectangle((left, top), size, size, fill=False, edgecolor="white", linewidth=1.5))
    for ax, (name, sr) in zip(axes[1:], images.items()):
        numbers = f"{psnr_y(sr, hr).item():.2f} dB, {metric.name} {metric(sr, hr).item():.3f}"
        show(ax, sr[crop], name, numbers)
    show(axes[-1], hr[crop], "reference", "PSNR-Y up, LPIPS down")
    file = io.BytesIO()
    figure.savefig(file, dpi=88)
    return file.getvalue()


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("reproduce.hero"):
        setup_device("cpu")
        picture = draw(args)
    if not write_or_report("reproduce.hero", args.out, picture):
        raise SystemExit(1)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
