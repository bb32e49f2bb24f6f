"""Evaluate a run's networks, bicubic and finished SR images: print the table, write val.json, draw."""

import os
import sys
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

import configs
from configs import Config
from data import list_images
from metrics.backbones import at_hand
from metrics.base import PerceptualMetric
from metrics.evaluate import MEMORY
from metrics.judges import METRICS, metric_of
from models.ops.ensemble import SelfEnsemble
from models.ops.tiled import TiledUpscaler
from runs.atomic import write_or_report
from runs.checkpoint import load_networks
from runs.evaluations import read_evaluations, write_evaluations
from runs.history import read_paces

from .comparison import ImageFiles, draw_worst
from .device import place_frozen
from .rows import Method, entries_of, rows_of, table, untested
from .validation import BICUBIC, EvaluationSet, FinishedImages, Upscale, metrics_on, score


def label_folders(folders: Sequence) -> dict[str, str]:
    """{short name: folder} of each data set: the folder's own name, or its path if two names are equal."""
    names = [str(f) if str(f).startswith("skimage:") else Path(os.path.abspath(f)).name for f in folders]
    return {name if names.count(name) == 1 else str(folder): str(folder) for name, folder in zip(names, folders)}


def choose_metrics(
    device, judges: Collection[str], nets=None, weights: tuple = (), bgr: bool = False, memory: int = MEMORY
) -> dict[str, PerceptualMetric]:
    """Build the metrics `nets`, by default the judges' and one that no network learned from.

    The latter is an LPIPS whose weights are on this machine, else MS-SSIM: a default downloads nothing for it.
    """
    if nets is None:
        nets = [net for net in METRICS if net in map(metric_of, judges)]
        others = [net for net in ("squeeze", "alex", "vgg") if net not in nets]
        here = [net for net in others if at_hand(net, weights)][:1]
        if others and not here:
            which = "LPIPS beside the judge's network" if nets else "LPIPS"
            print(
                f"left out: {which}, because its weights are not on this machine; --metrics {others[0]} downloads them"
            )
        nets += here or ["ms-ssim"] * ("ms-ssim" not in nets)
    return metrics_on(device, nets, weights, bgr, memory)


def selected_on(run: Path, config: Config, images: EvaluationSet) -> str:
    """A note if the `best` networks were selected on some of these images, by path or content; else ""."""
    if not (run / "log.jsonl").exists():  # made by convert.py, not trained here
        return ""
    try:
        own = list_images(config.valpath)
    except ValueError:
        return f"selected on these? {' '.join(config.valpath)} is not there"
    places = {os.path.realpath(path) for path in own}
    sizes = {path.stat().st_size for path in images.paths}
    contents = {zlib.crc32(path.read_bytes()) for path in own if path.stat().st_size in sizes}
    seen = sum(
        os.path.realpath(path) in places or zlib.crc32(path.read_bytes()) in contents if contents else False
        for path in images.paths
    )
    return {0: "", len(images): "selected on these images"}.get(seen, f"selected on {seen} of these images")


def collect_methods(
    images: EvaluationSet,
    nets: Mapping[Method, nn.Module],
    finished: Mapping[str, FinishedImages],
    device,
    memory: int,
    ensemble: bool,
) -> dict[str, dict[Method, Upscale]]:
    """The methods for a data set by protocol: bicubic, networks, self-ensembles, finished SR images."""
    shared: dict[Method, Upscale] = {}
    for method, net in nets.items():
        upscale = TiledUpscaler(net, memory)
        shared[method] = _of_lr(upscale)
        if ensemble:
            shared[method._replace(loss=f"{method.loss} (x8)")] = _of_lr(SelfEnsemble(upscale))
    shared |= {Method(name): folder for name, folder in finished.items()}
    bicubic = {protocol: BICUBIC[protocol](images.scale).to(device) for protocol in images.protocols}
    return {p: {Method("bicubic"): _of_lr(TiledUpscaler(net, memory))} | shared for p, net in bicubic.items()}


def _of_lr(upscale: Callable[[Tensor], Tensor]) -> Upscale:
    return lambda index, lr: upscale(lr)


def read_sets(
    folders,
    lr_folders,
    scale: int,
    protocols,
    bad_images: str,
    sr_folders: Mapping[str, str],
    lr_template: str | None = None,
    grey: bool = False,
) -> tuple[dict[str, EvaluationSet], dict[str, dict[str, FinishedImages]]]:
    """Read the data sets by short name, and for each the finished SR images by name. Raises ValueError."""
    configs.expect(len(folders) > 0, "folder", "", "one or more folders of HR images")
    configs.expect(len(lr_folders) in (0, len(folders)), "lrfolder", " ".join(lr_folders), "one for each data set")
    sets, finished = {}, {}
    for (name, folder), lr_folder in zip(label_folders(folders).items(), lr_folders or [None] * len(folders)):
        images = EvaluationSet(folder, scale, protocols, lr_folder, bad_images, lr_template, grey)
        sets[name] = images
        finished[name] = {own: FinishedImages(own, place, images) for own, place in sr_folders.items()}
        for found in finished[name].values():
            if found.missing and bad_images == "stop":
                more = f" (and {len(found.missing) - 1} more)" * (len(found.missing) > 1)
                raise ValueError(next(iter(found.missing.values())) + more)
        missing = {i: wrong for found in finished[name].values() for i, wrong in found.missing.items()}
        images.leave_out(missing)
    return sets, finished


def evaluate_run(
    run: Path | None,
    *,
    checkpoints: Sequence[str] = ("last",),
    model: str | None = None,
    scale: int | None = None,
    losses=None,
    folders=None,
    lr_folders=None,
    lr_template: str | None = None,
    sr_folders: Mapping[str, str] | None = None,
    protocols: Sequence[str] | None = None,
    metrics=None,
    weights: tuple = (),
    bgr: bool = False,
    rgb: bool = False,
    shave_lpips: bool = False,
    ensemble: bool = False,
    bad_images: str = "stop",
    skip_small: bool = False,
    memory: int = MEMORY,
    precision: str = "fp32",
    device="cpu",
    out: Path | None = None,
    save_images: Path | None = None,
    worst: int = 0,
) -> bool:
    """Evaluate a run (None: no networks), print the table, write files; return True if all are written.

    Args:
        checkpoints: "best" (each loss's best validation), "last", checkpoints of --keep-every such as "step_1000".
        model, scale: what the run must be; without a run, scale is bicubic's.
        folders, lr_folders: the data sets; default: the run's validation images.
        lr_template: names of LR images, where {} is the HR image's; default: the run's.
        sr_folders: folders of finished SR images by name.
        protocols, metrics, weights: default: the run's.
        shave_lpips: compute perceptual metrics, too, without the border that a protocol shaves.
        ensemble: evaluate each network's self-ensemble too.
        bad_images, skip_small: "skip" leaves out damaged images, skip_small those that are too small for a metric.
        out: the JSON file, with a CSV beside it; default: val.json in the run's folder, without a run none.
        save_images: the folder for SR images; worst: draw this many images on which two methods differ most.

    Raises ValueError for wrong input, ImageReadError if an image can no longer be read.
    """
    config, nets, judges, title = None, {}, [], "bicubic"
    if run is None:
        scale, checkpoints = scale or 4, [""]
    else:
        print(f"run: {run} ({', '.join(checkpoints)})")
        config, nets, judges = load_methods(run, checkpoints, losses)
        for name, wanted, own in (("model", model, config.model), ("scale", scale, config.scale)):
            configs.expect(wanted in (None, own), name, wanted, f"{own}, as {run} was trained")
        scale, title = config.scale, f"{config.model} ({run.name}, {', '.join(checkpoints)})"
        lr_folders = lr_folders or ([] if folders else config.vallrpath)
        own_sets = [] if folders else [path for path in config.valpath if not path.startswith("skimage:")]
        gone = [path for path in own_sets if not os.path.isdir(path)]
        configs.expect(not gone, "folder", " ".join(gone), "the run's validation images there; say where they are now")
        lr_template = lr_template or config.lr_template
        folders, protocols = folders or config.valpath, protocols or [config.protocol]
        metrics = metrics if metrics is not None else config.metrics or None
        weights = weights or config.judge_weights + config.extractor_weights
    protocols, sr_folders = protocols or ["paper"], sr_folders or {}
    taken = [name for name in sr_folders if name in {"bicubic", *(method.loss for method in nets)}]
    configs.expect(not taken, "sr_folder", " ".join(taken), "a name that no other row has")
    grey = config is not None and config.color == "grey"
    sets, finished = read_sets(
        folders or (), lr_folders or (), scale, protocols, bad_images, sr_folders, lr_template, grey
    )
    chosen = choose_metrics(device, judges, metrics, weights, bgr, memory)
    for images in sets.values():
        images.check_sizes(chosen, skip_small, shave_lpips)
    if out is not None:
        read_evaluations(check_out(out))
    elif run is not None:
        out = check_out(run / "val.json")
        try:
            read_evaluations(out)
        except ValueError:
            print(f"{out} is damaged, and is overwritten without its old content")
    configs.expect(out is not None or not worst, "worst", worst, "--out FILE beside --model bicubic")
    configs.expect(bool(nets or sr_folders) or not worst, "worst", worst, "--sr-folder NAME=DIR beside --model bicubic")
    for note in [note for images in sets.values() for note in images.notes]:
        print(note)
    for reason in [reason for images in sets.values() for reason in images.left_out]:
        print(f"left out: {reason}")

    nets = {method: place_frozen(net, device, precision) for method, net in nets.items()}
    rows, methods, files = [], {}, ImageFiles(save_images) if save_images else None
    paces = read_paces(run, config) if config else {}
    for name, images in sets.items():
        methods[name] = collect_methods(images, nets, finished[name], device, memory, ensemble)
        show = None if files is None else lambda *of: files.save(name, images, *of)
        scores = score(images, methods[name], chosen, device, name, precision, rgb, shave_lpips, show)
        best = selected_on(run, config, images) if "best" in checkpoints else ""
        rows += rows_of(name, images, scores, best, finished[name], paces)
    in_bf16 = (", on grey images" if grey else "") + (", networks in bf16" if precision == "bf16" else "")
    print(f"{title} x{scale}, protocol {' '.join(protocols)}, {device}{in_bf16}\n{table(rows, judges)}")
    if verdict := untested({method.loss for method in nets}):
        print(verdict)
    written = [files is None or not files.failed]
    if save_images and written[0]:
        print(f"SR images: {save_images}")
    if out is not None:
        about = {
            "model": config.model if config else "bicubic",
            "run": str(run or ""),
            "scale": scale,
            "judge": " ".join(judges),
            "device": str(device),
            "precision": precision,
        }
        written.append(write_evaluations(out, entries_of(rows, sets, checkpoints, about)))
        if written[-1]:
            print(f"written: {out}, {out.with_suffix('.csv')}")
    if worst:
        path = out.with_name(f"{out.stem}_worst.png")
        try:
            picture = draw_worst(rows, sets, methods, worst, device, precision)
            written.append(write_or_report("val.py", path, picture))
        except Exception as error:  # of any type: everything else is written by now
            reason = configs.one_line(str(error)) or type(error).__name__
            print(f"val.py: error: {path} was not drawn ({reason})", file=sys.stderr)
            written.append(False)
        if written[-1]:
            print(f"where two methods differ most: {path}")
    return all(written)


def load_methods(run: Path, checkpoints: Sequence[str], losses) -> tuple[Config, dict[Method, nn.Module], list[str]]:
    """Load a run's settings, its networks by loss and checkpoint, and its judges. Raises ValueError."""
    config, found, judges = None, {}, []
    for which in checkpoints:
        config, found[which], theirs = load_networks(run, which, losses)
        judges += [judge for judge in theirs if judge not in judges]
    nets = {Method(loss, which): found[which][loss] for loss in found[checkpoints[0]] for which in checkpoints}
    return config, nets, judges


def check_out(path: Path) -> Path:
    """Return path if a JSON file and a CSV beside it can be written there. Raises ValueError."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    fits = path.suffix != ".csv" and not path.is_dir() and existing.is_dir() and os.access(existing, os.W_OK)
    configs.expect(fits, "out", path, "a file for JSON, such as results.json, in a folder that can be written to")
    return path
