"""Crops of an image by several networks, side by side with their scores: TLW's Fig. 6."""

import argparse

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import configs
from metrics.base import PerceptualMetric
from metrics.evaluate import PROTOCOLS, finish
from metrics.fidelity import psnr_y
from metrics.judges import mark_biased, metric_of
from models.ops.tiled import TiledUpscaler
from training.figures import most_different
from training.validation import BICUBIC, metrics_on

from .drawing import Drawn, Plan, add_run_flags, check_box, read_images, read_run, show, square


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for runs, losses, images and crops."""
    add_run_flags(parser, many=True)
    parser.add_argument(
        "--losses", nargs="+", metavar="LOSS", help="only these, in this order; the first two choose the crops"
    )
    parser.add_argument("--image", metavar="FILE", help="a file or a folder (default: the run's validation images)")
    parser.add_argument(
        "--box", type=int, nargs=3, metavar=("TOP", "LEFT", "SIZE"), help="(default: where they differ)"
    )
    parser.add_argument("--size", type=int, default=72, metavar="N", help="side of a crop in pixels (default: 72)")
    parser.add_argument("--count", type=int, default=3, metavar="N", help="number of images (default: 3)")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), help="(default: the run's)")
    parser.add_argument("--metric", help="beside PSNR-Y (default: the run's first)")
    parser.add_argument("--judge-weights", nargs="+", metavar="FILE", help="local backbone files (default: the run's)")


def crop_metric(metric: PerceptualMetric, sr: Tensor, hr: Tensor) -> float:
    """The metric on a crop; NaN if the crop is too small for it."""
    return metric(sr, hr).item() if min(hr.shape[-2:]) >= metric.min_size else float("nan")


@torch.inference_mode()
def draw(args: argparse.Namespace) -> Drawn:
    """Draw Fig. 6: a row per image; scores are of the whole image and, in brackets, of the crop."""
    configs.expect(args.count > 0 and args.size >= 8, "size", args.size, "8 pixels or more, and --count of 1 or more")
    runs = {path: read_run(path, args.best) for path in args.modelpath}
    config = next(iter(runs.values())).config
    for path, run in runs.items():
        configs.expect(run.config.scale == config.scale, "modelpath", path, f"runs of one scale, x{config.scale}")
    nets, several = {}, len(runs) > 1
    for path, run in runs.items():
        nets |= {f"{name} ({path.name})" if several else name: net for name, net in run.nets.items()}
    if args.losses:
        nets = {name: nets[configs.choose(name, nets, "loss of the runs")] for name in args.losses}
    protocol = args.protocol or config.protocol
    upscalers = {"bicubic": BICUBIC[protocol](config.scale)} | {
        name: TiledUpscaler(net, 1 << 30) for name, net in nets.items()
    }
    rivals = (list(nets) * 2)[:2] if len(nets) > 1 else ["bicubic", *nets]
    judges = [judge for run in runs.values() for judge in run.judges]
    chosen = args.metric or next(iter(config.metrics or (metric_of(config.judge),)))
    weights = tuple(args.judge_weights or config.judge_weights + config.extractor_weights)
    (metric,) = metrics_on("cpu", [chosen], weights).values()

    found = []
    for name, (lr, hr) in read_images(args.image, config, protocol).items():
        sr = {loss: finish(upscale(lr).float(), PROTOCOLS[protocol]) for loss, upscale in upscalers.items()}
        one, other = (sr[loss] for loss in rivals)
        box = check_box(args.box, hr) if args.box else (..., *most_different(one, other, args.size))
        found.append(((one[box] - other[box]).square().mean().item(), name, hr, sr, box))
    found = sorted(found, key=lambda of: -of[0])[: args.count]

    figure, rows = Figure((2.1 * (len(upscalers) + 2), 2.75 * len(found)), layout="constrained"), []
    for line, (_, name, hr, sr, box) in zip(figure.subplots(len(found), len(upscalers) + 2, squeeze=False), found):
        top, left, side = box[1].start, box[2].start, (box[2].stop - box[2].start, box[1].stop - box[1].start)
        whole, above, before = square(hr)
        show(line[0], whole, name)
        line[0].set_frame_on(False)
        corner = left + before, top + above
        for colour, width in (("white", 3.5), ("red", 1.5)):  # visible on red too
            line[0].add_patch(Rectangle(corner, *side, fill=False, edgecolor=colour, linewidth=width))
        show(line[1], hr[box], "reference", f"PSNR-Y, {mark_biased(metric.name, judges)},\nof the image (of the crop)")
        for ax, (loss, image) in zip(line[2:], sr.items()):
            numbers = {
                "PSNR-Y": psnr_y(image, hr).item(),
                metric.name: metric(image, hr).item(),
                "PSNR-Y, crop": psnr_y(image[box], hr[box]).item(),
                f"{metric.name}, crop": crop_metric(metric, image[box], hr[box]),
            }
            psnr, distance, psnr_of_crop, distance_of_crop = numbers.values()
            show(ax, image[box], loss, f"{psnr:.2f} dB ({psnr_of_crop:.2f})\n{distance:.4f} ({distance_of_crop:.4f})")
            place = {"image": name, "top": top, "left": left, "width": side[0], "height": side[1], "loss": loss}
            rows.append(place | {key: round(value, 4) for key, value in numbers.items()})
    return Drawn(figure, rows)


RIVALS = Plan("Crops by rival losses, where they differ most: Fig. 6 of the TLW paper.", add_flags, draw)
