"""Measure SR networks on folders of images: PSNR-Y, SSIM-Y and LPIPS under a named protocol.

    python val.py --best                                        the newest run, on its validation images
    python val.py --modelpath checkpoints/RUN --folder A B --best --protocol standard --lpips alex squeeze
    python val.py --model bicubic --scale 4 --folder A          needs no checkpoint
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import configs
import files
import networks
import rundir
import signals
from data import Pairs, Unreadable
from metrics.backbones import at_hand, read_backbone_file
from metrics.fidelity import quantize
from metrics.judges import METRICS, marked, metric_of
from metrics.perceptual import NETS
from metrics.references import references
from models import SR_MODELS
from models.bicubic import Bicubic, MatlabBicubic
from models.within_memory import UpscaleWithin

Metric = Callable[[Tensor, Tensor], Tensor]  # sr, hr (1,3,H,W) in [-1,1] -> (1,); with `against`, as judges have it
MEMORY = 2 << 30  # bytes


class Protocol(NamedTuple):
    """How images are cropped, rounded and shaved before they are compared.

    multiple: HR is cropped at the bottom and right to multiples of it (None: of the scale). eight_bit: LR and SR
    are rounded to 8 bits. shave: PSNR and SSIM leave out `scale` pixels at each border. bicubic: the upscaler
    that the protocol's bicubic row stands for. LPIPS always sees the whole image.
    """

    multiple: int | None
    eight_bit: bool
    shave: bool
    bicubic: type[nn.Module]


PROTOCOLS = {
    # What reproduces the bicubic rows of the TLW paper's Table I to the fourth decimal.
    "paper": Protocol(multiple=12, eight_bit=False, shave=False, bicubic=Bicubic),
    # The field's convention, rounded in RGB (some tables round Y instead: 0.02 dB less for bicubic).
    "standard": Protocol(multiple=None, eight_bit=True, shave=True, bicubic=MatlabBicubic),
}


def read_pairs(folders, scale: int, protocol: str, lr_folders=()) -> Pairs:
    """The images of folders with the LR that the protocol asks for, or with that of lr_folders."""
    p = PROTOCOLS[protocol]
    return Pairs(folders, scale, p.multiple or scale, lr_folders=lr_folders or None, round_lr=p.eight_bit)


def check_sizes(pairs: Pairs, metrics: Mapping[str, Metric], protocol: str) -> None:
    """Raise ValueError, naming the image, where one is too small for SSIM's window or a network of LPIPS."""
    window = 11 + (2 * pairs.scale if PROTOCOLS[protocol].shave else 0)
    needed = max([window, *(metric.min_size for metric in metrics.values())])
    for path, (height, width) in zip(pairs.paths, pairs.sizes):
        if min(height, width) < needed:
            names = ", ".join(["SSIM-Y", *metrics])
            raise ValueError(f"{path} is {height}x{width}; {names} need {needed} pixels each way; leave it out")


def label_folders(folders) -> dict[str, str]:
    """A short name for each data set: its folder's own name where that tells it from the others, else its path."""
    names = [str(f) if str(f).startswith("skimage:") else Path(os.path.abspath(f)).name for f in folders]
    return {name if names.count(name) == 1 else str(folder): str(folder) for name, folder in zip(names, folders)}


def check_out(path: Path) -> Path:
    """path, where a JSON and a CSV beside it can be written; else ValueError."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    fits = path.suffix != ".csv" and not path.is_dir() and existing.is_dir() and os.access(existing, os.W_OK)
    configs.expect(fits, "out", path, "a file for JSON, such as results.json, in a folder that can be written to")
    return path


def build_metrics(
    nets, weights: tuple = (), bgr: bool = False, device="cpu", memory: int = MEMORY
) -> dict[str, Metric]:  # fmt: skip
    """The perceptual metrics `nets`, each under its full name. Raises ValueError where weights cannot be had.

    bgr: LPIPS sees the channels in OpenCV's order. memory: bytes for its activations; it takes larger images in tiles.
    """
    metrics = {}
    for net in nets:
        build = METRICS[configs.choose(net, METRICS, "perceptual metric")]
        metric = build(weights=weights, memory=memory, **({"bgr": True} if bgr and net in NETS else {}))
        metric.check_range.settled = True  # what data/ reads is in range, however bright
        metrics[metric.name] = networks.place_frozen(metric, torch.device(device), "fp32")
    return metrics


@torch.inference_mode()
def evaluate(
    net: nn.Module, pairs: Pairs, metrics: Mapping[str, Metric], protocol: str, device="cpu", label: str = "",
    memory: int = MEMORY, precision: str = "fp32",
) -> dict[str, list[float]]:  # fmt: skip
    """PSNR-Y, SSIM-Y and the given metrics of net on every image; net's train mode is restored.

    memory: bytes for the network's activations; larger images are upscaled in parts (see `UpscaleWithin`). precision:
    the network's, "fp32" or "bf16"; metrics never compute in less than fp32. What they compute of the HR images is kept
    for the next call with the same pairs, metrics, protocol and device.

    Returns {"PSNR-Y": [...], "SSIM-Y": [...], name of each metric: [...]}, in the order of the images.
    """
    p = PROTOCOLS[protocol]
    scores = {name: [] for name in ("PSNR-Y", "SSIM-Y", *metrics)}
    training = net.training
    net.eval()
    upscale = UpscaleWithin(net, memory)
    images = references(pairs, metrics, pairs.scale if p.shave else 0, device)
    bar = tqdm(images, label, len(pairs), leave=False, disable=None if label else True, unit="image")
    for lr, fidelity, distances in bar:
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=precision == "bf16"):
            sr = upscale(lr).float()
        sr = quantize(sr) if p.eight_bit else sr.clamp_(-1, 1)
        for name, value in zip(("PSNR-Y", "SSIM-Y"), fidelity(sr)):
            scores[name].append(value)
        for name, distance in distances.items():
            scores[name].append(distance(sr))
    net.train(training)
    return {name: torch.cat(values).tolist() if values else [] for name, values in scores.items()}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


class Row(NamedTuple):
    """One network on one data set."""

    dataset: str
    loss: str  # the loss it was trained with, or "bicubic"
    scores: dict[str, list[float]]


def table(rows: list[Row], judges: Collection[str] = ()) -> str:
    """The mean scores as text, metrics on a network that the SR networks learned from marked."""
    names = list(rows[0].scores)
    headers = [marked(name, judges) for name in names]
    lines, previous = [], None
    for row in rows:
        dataset = f"{row.dataset} ({len(row.scores['PSNR-Y'])})" if row.dataset != previous else ""
        lines.append([dataset, row.loss, *(f"{mean(row.scores[name]):.4f}" for name in names)])
        previous = row.dataset
    align = ("left", "left") + ("right",) * len(names)
    return tabulate(lines, ["data set (images)", "loss", *headers], disable_numparse=True, colalign=align)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = configs.OneLineParser(prog="val.py", description="PSNR-Y, SSIM-Y and LPIPS of SR networks.")
    parser.add_argument("--model", help="what the run must be (a check), or `bicubic` alone")
    parser.add_argument("--modelpath", help="folder of a run (default: the newest in checkpoints/)")
    parser.add_argument("--best", action="store_true", help="each loss's best epoch (default: the last one)")
    parser.add_argument("--folder", nargs="+", metavar="DIR", help="data sets (default: the run's --valpath)")
    parser.add_argument("--lrfolder", nargs="+", metavar="DIR", help="LR images, a folder for each data set (default: "
                        "made from HR)")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), help="of --model bicubic (default: 4); else a check")
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="only these of the run, by name or label")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="paper", help="(default: paper)")
    parser.add_argument("--lpips", nargs="*", metavar="NET", help="perceptual metrics: LPIPS's alex vgg squeeze, "
                        "tiny, ms-ssim (default: the judge's, and an LPIPS that was not the judge if it can be had)")
    parser.add_argument("--judge-weights", nargs="+", metavar="FILE", help="local backbone files (default: the run's)")
    parser.add_argument("--bgr", action="store_true", help="show LPIPS the channels as BGR, as the released code does")
    parser.add_argument("--memory", type=int, default=MEMORY >> 20, metavar="MIB", help="for the activations of the "
                        "network and of each metric; larger images go in parts, with the same result (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the networks; bf16 is faster where "
                        "the machine has it, and moves the scores a little (default: fp32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: what the machine has)")
    parser.add_argument("--out", metavar="FILE", help="where the JSON goes, a CSV beside it (default: RUN/val.json)")
    return parser.parse_args(argv)


def choose_metrics(args, judges: Collection[str], weights: tuple, device) -> dict[str, Metric]:
    """The metrics asked for, else the judges' and one that was no judge: an LPIPS where its weights can be had."""
    if args.lpips is not None:
        return build_metrics(args.lpips, weights, args.bgr, device, args.memory << 20)
    judging = [net for net in METRICS if net in map(metric_of, judges)]
    metrics = build_metrics(judging, weights, args.bgr, device, args.memory << 20)
    others = [net for net in ("squeeze", "alex", "vgg") if net not in judging] or ["tiny"]
    other = next((net for net in others if net == "tiny" or at_hand(net, weights)), others[0])
    try:
        return metrics | build_metrics([other], weights, args.bgr, device, args.memory << 20)
    except ValueError as error:
        print(f"no LPIPS network{' that was not the judge' if judging else ''}: {error}")
        return metrics | build_metrics([] if "ms-ssim" in judging else ["ms-ssim"], (), False, device, args.memory << 20)


def write_results(path: Path, rows: list[Row], **about) -> bool:
    """The table as JSON (with the scores of every image) and, beside it, as CSV. Returns whether both are there."""
    means = [{"dataset": r.dataset, "files": len(r.scores["PSNR-Y"]), "loss": r.loss,
              **{name: mean(values) for name, values in r.scores.items()}} for r in rows]
    per_image = [row | {"per_image": r.scores} for row, r in zip(means, rows)]
    text = json.dumps(rundir.finite({**about, "rows": per_image}), indent=1) + "\n"
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, [*about, *means[0]])
    writer.writeheader()
    writer.writerows(about | row for row in means)
    contents = {path: text, path.with_suffix(".csv"): lines.getvalue()}
    encoded = {file: content.encode(errors="backslashreplace") for file, content in contents.items()}
    return all([rundir.write_or_say("val.py", file, content) for file, content in encoded.items()])


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("val.py"):
        device = networks.choose_device(args.device)
        for path in args.judge_weights or ():  # those that no metric needs too
            read_backbone_file(path)
        configs.expect(0 < args.memory <= 10**9, "memory", args.memory, f"MiB, from 1 to {10**9}")
        protocol = PROTOCOLS[args.protocol]
        which = "best" if args.best else "last"
        configs.expect(args.modelpath != "", "modelpath", '""', "a run's folder; leave it out for the newest")
        configs.expect(args.out != "", "out", '""', "a file for JSON, such as results.json")
        if args.model is not None:
            configs.choose(args.model, [*SR_MODELS, "bicubic"], "model")
        if args.model == "bicubic":
            run, scale, judges, trained = None, args.scale or 4, [], {}
            given = [flag for flag in ("modelpath", "best", "losses") if getattr(args, flag)]
            given += ["precision"] * (args.precision != "fp32")
            configs.expect(not given, "model", "bicubic", f"no {', '.join(map(configs.flag_of, given))} beside it")
            folders, weights = args.folder or (), tuple(args.judge_weights or ())
        else:
            run = Path(args.modelpath) if args.modelpath else rundir.newest_run()
            print(f"run: {run} ({which})")
            config, trained, judges = networks.load_networks(run, which, args.losses)
            for name, wanted, found in (("model", args.model, config.model), ("scale", args.scale, config.scale)):
                configs.expect(wanted in (None, found), name, wanted, f"{found}, as {run} was trained")
            scale = config.scale
            folders = args.folder or config.valpath
            weights = tuple(args.judge_weights or config.judge_weights + config.extractor_weights)
        configs.expect(len(folders) > 0, "folder", "", "one or more folders of HR images")
        lrfolders = args.lrfolder or ([] if args.folder or not trained else config.vallrpath)
        configs.expect(len(lrfolders) in (0, len(folders)), "lrfolder", " ".join(lrfolders), "one for each data set")
        sets = {
            name: read_pairs([path], scale, args.protocol, lrfolders[i : i + 1])
            for i, (name, path) in enumerate(label_folders(folders).items())
        }
        metrics = choose_metrics(args, judges, weights, device)
        for pairs in sets.values():
            check_sizes(pairs, metrics, args.protocol)
        out = check_out(Path(args.out) if args.out else run / "val.json") if args.out or run else None

    trained = {loss: networks.place_frozen(net, device, args.precision) for loss, net in trained.items()}
    rows = []
    try:
        for name, pairs in sets.items():
            for loss, net in {"bicubic": protocol.bicubic(scale).to(device), **trained}.items():
                label, memory = f"{name} {loss}", args.memory << 20
                scores = evaluate(net, pairs, metrics, args.protocol, device, label, memory, args.precision)
                rows.append(Row(name, loss, scores))
    except Unreadable as error:
        print(f"val.py: error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    in_bf16 = ", networks in bf16" if args.precision == "bf16" else ""
    title = f"{config.model} ({run.name}, {which})" if run else "bicubic"
    print(f"{title} x{scale}, protocol {args.protocol}, {device}{in_bf16}\n{table(rows, judges)}")
    if out:
        about = {"model": config.model if run else "bicubic", "run": str(run or ""), "checkpoint": which if run else "",
                 "scale": scale, "protocol": args.protocol, "judge": " ".join(judges), "device": str(device),
                 "precision": args.precision}
        if not write_results(out, rows, **about):
            raise SystemExit(1)
        print(f"written: {out}, {out.with_suffix('.csv')}")


if __name__ == "__main__":
    files.spell_odd_names()
    with signals.at_once("the evaluation was not finished"):
        main()
