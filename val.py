"""Measure SR networks on folders of images: PSNR-Y, SSIM-Y and perceptual metrics under a named protocol.

python val.py --best                                        the newest run, on its validation images
python val.py --modelpath checkpoints/RUN --folder A B --best --protocol standard --metrics alex squeeze
python val.py --model bicubic --scale 4 --folder A          needs no checkpoint
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import configs
from runs.output import escape_unencodable_output


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; a wrong one ends the program with exit code 2."""
    about, examples = __doc__.split("\n\n", 1)
    parser = configs.OneLineParser(prog="val.py", description=about, epilog=f"examples:\n{examples}")
    parser.add_argument("--model", help="what the run must be (a check), or `bicubic` alone")
    parser.add_argument(
        "--modelpath",
        type=configs.typed_path,
        metavar="DIR",
        help="folder of a run (default: the newest in checkpoints/)",
    )
    parser.add_argument("--best", action="store_true", help="each loss's best epoch (default: the last one)")
    parser.add_argument(
        "--folder", nargs="+", type=configs.typed_path, metavar="DIR", help="data sets (default: the run's --valpath)"
    )
    parser.add_argument(
        "--lrfolder",
        nargs="+",
        type=configs.typed_path,
        metavar="DIR",
        help="LR images, a folder for each data set (default: made from HR)",
    )
    parser.add_argument(
        "--lr-template", metavar="NAME", help="of LR images where {} is the HR's, such as {}_small (default: the run's)"
    )
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), help="of --model bicubic (default: 4); else a check")
    parser.add_argument("--losses", nargs="+", metavar="LOSS", help="only these of the run, by name or label")
    parser.add_argument("--protocol", choices=configs.names("protocol"), default="paper", help="(default: paper)")
    parser.add_argument(
        "--metrics",
        "--lpips",
        nargs="*",
        metavar="NET",
        help=f"perceptual metrics: {' '.join(configs.names('perceptual metric'))} "
        "(default: the judge's, and an LPIPS that was not the judge if its weights are at hand)",
    )
    parser.add_argument(
        "--judge-weights",
        nargs="+",
        type=configs.typed_path,
        metavar="FILE",
        help="local backbone files (default: the run's)",
    )
    parser.add_argument("--bgr", action="store_true", help="show LPIPS the channels as BGR, as the released code does")
    parser.add_argument(
        "--memory",
        type=int,
        default=configs.constant("metrics/evaluate.py", "MEMORY") >> 20,
        metavar="MIB",
        help="for the activations of the "
        "network and of each metric; larger images go in parts, with the same result (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the networks; bf16 is faster where the machine has it, and moves the scores a little (default: fp32)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: what the machine has)")
    parser.add_argument(
        "--out",
        "--output",
        type=configs.typed_path,
        metavar="FILE",
        help="where the JSON goes, a CSV beside it (default: RUN/val.json)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":  # --help and slips of the pen are answered before torch is imported, which takes seconds
    escape_unencodable_output()
    given = parse(None)
    with configs.one_line_errors("val.py"):
        configs.check_known("model", {given.model} - {None, "bicubic"}, "bicubic")
        configs.check_known("perceptual metric", given.metrics or ())

from tabulate import tabulate
from torch import nn

from data import ImageReadError, PairedDataset
from metrics.backbones import at_hand, read_backbone_file
from metrics.base import PerceptualMetric
from metrics.evaluate import MEMORY, check_sizes, evaluate, mean
from metrics.judges import METRICS, mark_biased, metric_of
from metrics.references import ReferenceCache
from models import SR_MODELS
from models.bicubic import Bicubic, MatlabBicubic
from models.ops.tiled import TiledUpscaler
from runs.atomic import write_or_report
from runs.checkpoint import load_networks
from runs.folder import newest_run_dir
from runs.log import json_safe
from training import stop_signals
from training.device import place_frozen, setup_device
from training.validation import metrics_on, read_validation_set

# The upscaler that a protocol's bicubic row stands for.
BICUBIC: dict[str, type[nn.Module]] = {"paper": Bicubic, "standard": MatlabBicubic}


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


class Row(NamedTuple):
    """One network on one data set."""

    dataset: str
    loss: str  # the loss it was trained with, or "bicubic"
    scores: dict[str, list[float]]


def table(rows: list[Row], judges: Collection[str] = ()) -> str:
    """The mean scores as text, metrics on a network that the SR networks learned from mark_biased."""
    names = list(rows[0].scores)
    headers = [mark_biased(name, judges) for name in names]
    lines, previous = [], None
    for row in rows:
        dataset = f"{row.dataset} ({len(row.scores['PSNR-Y'])})" if row.dataset != previous else ""
        lines.append([dataset, row.loss, *(f"{mean(row.scores[name]):.4f}" for name in names)])
        previous = row.dataset
    align = ("left", "left") + ("right",) * len(names)
    return tabulate(lines, ["data set (images)", "loss", *headers], disable_numparse=True, colalign=align)


def choose_metrics(
    device, judges: Collection[str], nets=None, weights: tuple = (), bgr: bool = False, memory: int = MEMORY
) -> dict[str, PerceptualMetric]:
    """The metrics `nets`, else the judges' and one that was no judge: an LPIPS whose weights are at hand, or MS-SSIM.

    Nothing is downloaded for a metric that was not asked for.
    """
    if nets is None:
        nets = [net for net in METRICS if net in map(metric_of, judges)]
        others = [net for net in ("squeeze", "alex", "vgg") if net not in nets]
        here = [net for net in others if at_hand(net, weights)][:1]
        if others and not here:
            which = "LPIPS beside the judge's network" if nets else "LPIPS"
            print(f"left out: {which}, for no weights are at hand; --metrics {others[0]} fetches them")
        nets += here or ["ms-ssim"] * ("ms-ssim" not in nets)
    return metrics_on(device, nets, weights, bgr, memory)


def write_results(path: Path, rows: list[Row], **about) -> bool:
    """The table as JSON (with the scores of every image) and, beside it, as CSV. Returns whether both are there."""
    means = [
        {
            "dataset": r.dataset,
            "files": len(r.scores["PSNR-Y"]),
            "loss": r.loss,
            **{name: mean(values) for name, values in r.scores.items()},
        }
        for r in rows
    ]
    per_image = [row | {"per_image": r.scores} for row, r in zip(means, rows)]
    text = json.dumps(json_safe({**about, "rows": per_image}), indent=1) + "\n"
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, [*about, *means[0]])
    writer.writeheader()
    writer.writerows(about | row for row in means)
    contents = {path: text, path.with_suffix(".csv"): lines.getvalue()}
    encoded = {file: content.encode(errors="backslashreplace") for file, content in contents.items()}
    return all([write_or_report("val.py", file, content) for file, content in encoded.items()])


def evaluate_sets(
    nets: Mapping[str, nn.Module],
    sets: Mapping[str, PairedDataset],
    metrics: Mapping[str, PerceptualMetric],
    protocol: str,
    device,
    memory: int = MEMORY,
    precision: str = "fp32",
) -> list[Row]:
    """Measure bicubic upscaling and nets, by their losses, on every data set. Raises ImageReadError."""
    rows, cache = [], ReferenceCache()
    for name, pairs in sets.items():
        bicubic = BICUBIC[protocol](pairs.scale).to(device)
        for loss, net in {"bicubic": bicubic, **nets}.items():
            upscale = TiledUpscaler(net, memory)
            scores = evaluate(upscale, pairs, metrics, protocol, device, f"{name} {loss}", precision, cache)
            rows.append(Row(name, loss, scores))
    return rows


def read_sets(folders, lr_folders, scale: int, protocol: str, lr_template=None) -> dict[str, PairedDataset]:
    """The data sets in folders by short names, with their LR images or those made from HR. Raises ValueError."""
    configs.expect(len(folders) > 0, "folder", "", "one or more folders of HR images")
    configs.expect(len(lr_folders) in (0, len(folders)), "lrfolder", " ".join(lr_folders), "one for each data set")
    return {
        name: read_validation_set([path], scale, protocol, lr_folders[i : i + 1], lr_template)
        for i, (name, path) in enumerate(label_folders(folders).items())
    }


def evaluate_run(
    run: Path | None,
    *,
    which: str = "last",
    model: str | None = None,
    scale: int | None = None,
    losses=None,
    folders=None,
    lr_folders=None,
    lr_template: str | None = None,
    protocol: str = "paper",
    metrics=None,
    weights: tuple = (),
    bgr: bool = False,
    memory: int = MEMORY,
    precision: str = "fp32",
    device="cpu",
    out: Path | None = None,
) -> bool:
    """Measure the networks of a run (None: bicubic alone), print the table and write it; returns if all is written.

    Args:
        which: "best" (each loss's best epoch) or "last".
        model, scale: what the run must be; the scale of bicubic.
        folders, lr_folders: the data sets; default: the run's validation images.
        lr_template: names of LR images where {} is the HR's; default: the run's.
        out: the JSON file, a CSV beside it; default: val.json in the run's folder.

    Raises ValueError for wrong input and ImageReadError if an image cannot be read any more.
    """
    if run is None:
        scale, judges, nets, title = scale or 4, [], {}, "bicubic"
    else:
        print(f"run: {run} ({which})")
        config, nets, judges = load_networks(run, which, losses)
        for name, wanted, found in (("model", model, config.model), ("scale", scale, config.scale)):
            configs.expect(wanted in (None, found), name, wanted, f"{found}, as {run} was trained")
        scale, title = config.scale, f"{config.model} ({run.name}, {which})"
        lr_folders = lr_folders or ([] if folders else config.vallrpath)
        lr_template = lr_template or config.lr_template
        folders = folders or config.valpath
        weights = weights or config.judge_weights + config.extractor_weights
    sets = read_sets(folders or (), lr_folders or (), scale, protocol, lr_template)
    chosen = choose_metrics(device, judges, metrics, weights, bgr, memory)
    for pairs in sets.values():
        check_sizes(pairs, chosen, protocol)
    out = check_out(out or run / "val.json") if out or run else None

    nets = {loss: place_frozen(net, device, precision) for loss, net in nets.items()}
    rows = evaluate_sets(nets, sets, chosen, protocol, device, memory, precision)
    in_bf16 = ", networks in bf16" if precision == "bf16" else ""
    print(f"{title} x{scale}, protocol {protocol}, {device}{in_bf16}\n{table(rows, judges)}")
    if out is None:
        return True
    about = {
        "model": config.model if run else "bicubic",
        "run": str(run or ""),
        "checkpoint": which if run else "",
        "scale": scale,
        "protocol": protocol,
        "judge": " ".join(judges),
        "device": str(device),
        "precision": precision,
    }
    if not write_results(out, rows, **about):
        return False
    print(f"written: {out}, {out.with_suffix('.csv')}")
    return True


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("val.py"):
        device = setup_device(args.device)
        for path in args.judge_weights or ():  # those that no metric needs too
            read_backbone_file(path)
        configs.expect(0 < args.memory <= 10**9, "memory", args.memory, f"MiB, from 1 to {10**9}")
        configs.expect(args.modelpath != "", "modelpath", '""', "a run's folder; leave it out for the newest")
        template = args.lr_template is None or "{}" in args.lr_template
        configs.expect(template, "lr_template", args.lr_template, "a name with {} in it, such as {}_small")
        configs.expect(args.out != "", "out", '""', "a file for JSON, such as results.json")
        run = None
        if args.model == "bicubic":
            given = [flag for flag in ("modelpath", "best", "losses") if getattr(args, flag)]
            given += ["precision"] * (args.precision != "fp32")
            configs.expect(not given, "model", "bicubic", f"no {', '.join(map(configs.flag_of, given))} beside it")
        else:
            if args.model is not None:
                configs.choose(args.model, [*SR_MODELS, "bicubic"], "model")
            run = Path(args.modelpath) if args.modelpath else newest_run_dir()
        try:
            written = evaluate_run(
                run,
                which="best" if args.best else "last",
                model=args.model,
                scale=args.scale,
                losses=args.losses,
                folders=args.folder,
                lr_folders=args.lrfolder,
                lr_template=args.lr_template,
                protocol=args.protocol,
                metrics=args.metrics,
                weights=tuple(args.judge_weights or ()),
                bgr=args.bgr,
                memory=args.memory << 20,
                precision=args.precision,
                device=device,
                out=Path(args.out) if args.out else None,
            )
        except ImageReadError as error:
            print(f"val.py: error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
    if not written:
        raise SystemExit(1)


if __name__ == "__main__":
    with stop_signals.exit_on_signal("the evaluation was not finished"):
        main()
