"""Measure the PSNR that blended tiles cost, for networks that average over the whole image.

python -m benchmarks.tiles --modelpath checkpoints/RCAN_x2_001 --folder datasets/Set5 datasets/Set14 --tile 80 96 128
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch
from tabulate import tabulate

import configs
from infer import OVERLAP
from metrics.evaluate import evaluate
from models.ops.tiled import BlendedTiles
from runs.checkpoint import load_networks
from training.device import setup_device
from training.validation import read_validation_set


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = configs.OneLineParser(prog="benchmarks.tiles", description=__doc__.split("\n")[0])
    parser.add_argument("--modelpath", required=True, metavar="DIR", help="folder of a run")
    parser.add_argument("--folder", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--tile", nargs="+", type=int, required=True, metavar="N", help="sides of tiles in LR pixels")
    parser.add_argument("--device")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("benchmarks.tiles"):
        device = setup_device(args.device)
        which = "best" if any(Path(args.modelpath).glob("best_*.pt")) else "last"
        config, nets, _ = load_networks(Path(args.modelpath), which)
        align = max(getattr(net, "window", 1) for net in nets.values())
        least = 2 * OVERLAP + align
        configs.expect(min(args.tile) >= least, "tile", min(args.tile), f"{least} or more")
        sets = {folder: read_validation_set([folder], config.scale, "standard") for folder in args.folder}
    rows = []
    for loss, net in nets.items():
        net = net.to(device).eval()
        for folder, pairs in sets.items():
            whole = evaluate(net, pairs, {}, "standard", device)["PSNR-Y"]
            rows.append([loss, Path(folder).name, "whole", "", fmean(whole), "", ""])
            for tile in args.tile:
                blended = BlendedTiles(net, config.scale, tile, OVERLAP, align)
                cut = [i for i, (h, w) in enumerate(pairs.sizes) if max(h, w) > tile * config.scale]
                found = evaluate(blended, pairs, {}, "standard", device)["PSNR-Y"]
                lost = [whole[i] - found[i] for i in cut]
                rows.append([loss, Path(folder).name, tile, f"{len(cut)} of {len(pairs)}", fmean(found)])
                rows[-1] += [fmean(lost), max(lost)] if lost else ["", ""]
    print(f"{config.model} x{config.scale}, overlap {OVERLAP}, PSNR-Y of protocol standard, {torch.__version__}")
    headers = ["loss", "data set", "tile", "images cut", "PSNR-Y", "lost by those", "at most"]
    print(tabulate(rows, headers, floatfmt=("", "", "", "", ".4f", ".4f", ".4f")))


if __name__ == "__main__":
    main()
