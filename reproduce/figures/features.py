"""Feature maps of two extractors: Fig. 3 of the Dual Perceptual loss paper."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import configs
from data import list_images, read_rgb
from metrics.extractors import build_extractor

from .drawing import Drawn, Plan, correlation, gradient, show


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the image, the extractors and the channels."""
    parser.add_argument("--image", default="skimage:astronaut", help="a file, or a folder's first image")
    parser.add_argument(
        "--dp-extractors",
        nargs="+",
        default=["vgg19:relu3_3", "resnet50:layer1"],
        metavar="NETWORK:LAYER",
        help="(default: vgg19:relu3_3 resnet50:layer1, both of 256 channels at a quarter of the size)",
    )
    parser.add_argument("--channels", nargs="+", type=int, default=[1, 64, 256], help="counted from 1, as in the paper")
    parser.add_argument("--extractor-weights", nargs="+", default=(), metavar="FILE", help="local files of the weights")


@torch.inference_mode()
def draw(args: argparse.Namespace) -> Drawn:
    """Draw the image, and a row of feature maps per extractor, each scaled to its own range."""
    path = Path(args.image) if Path(args.image).is_file() else list_images([args.image])[0]
    image = torch.from_numpy(read_rgb(path)).permute(2, 0, 1)[None] / 127.5 - 1
    count, rows = len(args.channels), []
    figure = Figure((2.4 * (count + 1), 2.7 * len(args.dp_extractors)), layout="constrained")
    axes = figure.subplots(len(args.dp_extractors), count + 1, squeeze=False)
    for line, name in zip(axes, args.dp_extractors):
        (features,) = build_extractor(name, tuple(args.extractor_weights)).features(image)[-1:]
        show(line[0], image, path.name, name)
        edges = torch.nn.functional.interpolate(gradient(image[0])[None, None], features.shape[-2:], mode="area")[0, 0]
        for ax, channel in zip(line[1:], args.channels):
            inside = 0 < channel <= features.shape[1]
            configs.expect(inside, "channels", channel, f"channels from 1 to {features.shape[1]} of {name}")
            shown = features[0, channel - 1]
            show(ax, shown, f"channel {channel}", cmap="gray")
            rows.append(
                {
                    "extractor": name,
                    "channel": channel,
                    "mean": f"{shown.mean():.6g}",
                    "deviation": f"{shown.std():.6g}",
                    "share of zeros": round((shown == 0).float().mean().item(), 4),
                    "with edges": round(correlation(shown, edges), 4),
                }
            )
    return Drawn(figure, rows)


FEATURES = Plan("Feature maps, Fig. 3 of the Dual Perceptual loss paper.", add_flags, draw)
