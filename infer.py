"""Upscale images with a trained network: files or folders in, files of the same names out.

python infer.py --input photos                               the newest run's network; writes photos_x4/
python infer.py --input a.png b.jpg --modelpath checkpoints/RUN --loss L1+TLW --output sr --format same
python infer.py --input photos --model bicubic --scale 2     needs no checkpoint
python infer.py --input photos --weights RealESRGAN_x4plus.pth
"""

import argparse

import configs
from runs.output import escape_unencodable_output


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 if it is wrong."""
    about, examples = __doc__.split("\n\n", 1)
    parser = configs.OneLineParser(prog="infer.py", description=about, epilog=f"examples:\n{examples}")
    path = configs.typed_path
    parser.add_argument(
        "-i", "--input", nargs="+", required=True, type=path, metavar="PATH", help="images and folders of images"
    )
    parser.add_argument(
        "--modelpath", type=path, metavar="DIR", help="folder of a run (default: the newest in checkpoints/)"
    )
    parser.add_argument("--loss", metavar="LOSS", help="use this loss's network (default: L1+TLW, else the first)")
    parser.add_argument("--best", action="store_true", help="its best checkpoint (default: best if there is one)")
    parser.add_argument("--last", action="store_true", help="its last checkpoint")
    parser.add_argument("--checkpoint", metavar="NAME", help="a checkpoint that --keep-every kept, such as step_1000")
    parser.add_argument(
        "--weights", type=path, metavar="FILE", help="use this file, an export or one that spandrel reads, not a run"
    )
    parser.add_argument("--model", metavar="bicubic", help="use bicubic (MATLAB's imresize), not a network")
    parser.add_argument("--scale", type=int, metavar="N", help="scale of --model bicubic (default: 4)")
    parser.add_argument(
        "-o", "--output", type=path, metavar="DIR", help="where to write (default: beside the input, see --suffix)"
    )
    parser.add_argument(
        "--suffix",
        metavar="TEXT",
        help="appended to the names of written folders and files; with --output, files keep their names unless it is "
        "given (default: _xSCALE)",
    )
    parser.add_argument(
        "--format",
        choices=("png", "webp", "jpg", "tiff", "same"),
        default="png",
        help="format of the files; same: as each input; all but jpg are lossless (default: png)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files (default: skip them)")
    parser.add_argument(
        "--memory",
        type=int,
        default=2048,
        metavar="MIB",
        help="memory for the network's activations; larger images are computed in parts, with the same result "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="for networks that --memory cannot split exactly (RCAN, HAT, --weights): overlapping, blended tiles of "
        "N x N LR pixels; the result differs a little from the whole image's",
    )
    parser.add_argument(
        "--ensemble", action="store_true", help='mean over 8 flips and turns ("+" in papers); takes 8 times as long'
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="arithmetic of the network; bf16 has 8 significant bits (default: fp32)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is a GPU)")
    return parser.parse_args(argv)


if __name__ == "__main__":  # importing torch takes seconds: answer --help and typing errors before it
    escape_unencodable_output()
    parse(None)

import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from data.picture import Picture, count_pixels, encode_picture, fill_transparent, read_picture, settle_alpha
from data.targets import Target, choose_targets
from models.bicubic import MatlabBicubic
from models.export import from_safetensors, is_our_export
from models.layouts import unwrap
from models.ops.ensemble import SelfEnsemble
from models.ops.tiled import BlendedTiles, NotCut, TiledUpscaler
from models.spandrel_network import SpandrelNetwork
from runs.atomic import atomic_write
from runs.checkpoint import load_networks, read_settings
from runs.folder import newest_run_dir
from runs.weights_file import read_weights_file
from training import stop_signals
from training.device import place_frozen, setup_device

OVERLAP = 32  # of blended tiles, in pixels of LR
LEAST_MEMORY = 256 << 20  # bytes of activations for each image if several are upscaled at once
# Samples (H,W,3 or 1) of uint8 or uint16 -> the upscaled (s*H,s*W,3 or 1), of the same type and channels.
Enlarge = Callable[[np.ndarray], np.ndarray]


class Stopped(Exception):
    """Raised in a worker thread to end it."""


def choose_network(args: argparse.Namespace) -> tuple[nn.Module, str]:
    """Load the network that the command line names; return it and its description. Raises ValueError."""
    of_run = [
        name for name in ("modelpath", "loss", "best", "last", "checkpoint") if getattr(args, name) not in (None, False)
    ]
    configs.expect(not (args.best and args.last), "best", "--last", "one of the two")
    both = args.checkpoint and (args.best or args.last)
    configs.expect(not both, "checkpoint", args.checkpoint, "no --best and no --last beside it")
    if args.model is not None:
        configs.choose(args.model, ["bicubic"], "model")
        others = [*of_run, *(["weights"] if args.weights else [])]
        configs.expect(not others, "model", "bicubic", f"no {', '.join(map(configs.flag_of, others))} beside it")
        scale = 4 if args.scale is None else args.scale
        configs.expect(2 <= scale <= 8, "scale", scale, "2 to 8")
        return MatlabBicubic(scale), f"bicubic x{scale}"
    if args.weights is not None:
        configs.expect(not of_run, "weights", args.weights, f"no {', '.join(map(configs.flag_of, of_run))} beside it")
        net = read_weights(Path(args.weights))
        words = f"{getattr(net, 'architecture', type(net).__name__)} x{net.scale} of {args.weights}"
    else:
        net, words = choose_of_run(args)
    configs.expect(args.scale in (None, net.scale), "scale", args.scale, f"{net.scale}, as the network has it")
    return net, words


def choose_of_run(args: argparse.Namespace) -> tuple[nn.Module, str]:
    """Load a run's network: of --loss, else L1+TLW, else the first loss; best if saved, else last."""
    configs.expect(args.modelpath != "", "modelpath", '""', "a run's folder; leave it out for the newest")
    run = Path(args.modelpath) if args.modelpath else newest_run_dir()
    names = list(read_settings(run).variants)
    loss = args.loss or ("L1+TLW" if "L1+TLW" in names else names[0])
    which = "last" if args.last or not args.best and not (run / f"best_{loss}.pt").exists() else "best"
    which = args.checkpoint.removesuffix(".pt") if args.checkpoint else which
    config, nets, _ = load_networks(run, which, [loss])
    of_several = f" (of {', '.join(names)}; --loss names another)" if len(names) > 1 and not args.loss else ""
    return nets[
        loss
    ], f"{config.model} x{config.scale} of {run}, {which}{'' if args.checkpoint else ' epoch'} of {loss}{of_several}"


def read_weights(path: Path) -> nn.Module:
    """Load the network of a file that spandrel reads, or of our own safetensors. Raises ValueError."""
    try:
        state, metadata = read_weights_file(path)
        if "model_id" in state:
            raise ValueError(f"a checkpoint of {state['model_id']}; name its folder with --modelpath {path.parent}")
        if is_our_export(state, metadata):
            return from_safetensors(state, metadata).network
        return SpandrelNetwork(unwrap(state)[0])
    except ValueError as error:
        raise ValueError(f"--weights {path}: {str(error).removeprefix(f'{path}: ')}") from None


def check_tile(net: nn.Module, tile: int | None) -> int | None:
    """Return the side of blended tiles, None if net needs none. Raises ValueError if it is too small."""
    if tile is None:
        return None
    least = 2 * OVERLAP + getattr(net, "window", 1)
    configs.expect(tile >= least, "tile", tile, f"{least} pixels or more")
    if getattr(net, "receptive_radius", None) is None:
        return tile
    print(f"--tile {tile}: not needed, {type(net).__name__} is split exactly, see --memory")
    return None


def build_enlarge(
    net: nn.Module, device: torch.device, memory: int, tile: int | None, ensemble: bool, precision: str
) -> Enlarge:
    """Build the function that upscales samples, for use in any thread.

    memory: bytes of activations in one call.
    """

    def upscale(lr: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        if tile is None and not ensemble:
            return TiledUpscaler(net, memory, finish)(lr)
        work = TiledUpscaler(net, memory)
        if tile is not None:
            work = BlendedTiles(work, net.scale, tile, OVERLAP, getattr(net, "window", 1))
        return finish(SelfEnsemble(work)(lr) if ensemble else work(lr))

    grey = getattr(net, "colours", 3) == 1

    @torch.inference_mode()
    def enlarge(samples: np.ndarray) -> np.ndarray:
        channels, most = samples.shape[2], np.iinfo(samples.dtype).max
        integers = torch.uint8 if samples.dtype == np.uint8 else torch.uint16

        def to_samples(sr: Tensor) -> Tensor:
            sr = sr.float().mean(1, keepdim=True) if channels == 1 and not grey else sr.float()
            if not torch.isfinite(sr).all():
                raise ValueError("the network's result has infinite values or none; take another --loss, or fp32")
            return sr.add(1).mul_(most / 2).round_().clamp_(0, most).to(integers)

        levels = (np.arange(most + 1) / most * 2 - 1).astype(np.float32)  # computed in float64, as in training
        lr = torch.from_numpy(levels[samples]).to(device).permute(2, 0, 1)[None]
        # A grey network gets each channel as an image of its own; other networks get grey as three equal channels.
        lr = lr.transpose(0, 1) if grey else lr.expand(1, 3, -1, -1)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            sr = upscale(lr.contiguous(), to_samples)
        return (sr[:, 0] if grey else sr[0]).permute(1, 2, 0).cpu().numpy()

    return enlarge


def enlarge_picture(picture: Picture, enlarge: Enlarge) -> Picture:
    """Upscale a picture: its colours and its transparency separately."""
    colour = enlarge(fill_transparent(picture))
    alpha = picture.alpha
    if alpha is not None:
        alpha = settle_alpha(alpha, enlarge(alpha[..., None])[..., 0])
    return Picture(colour, alpha, picture.icc)


def upscale_file(target: Target, enlarge: Enlarge, turns: threading.Semaphore) -> None:
    """Read, upscale and write one image.

    Raises ValueError if the image or the network fails, OSError if the file cannot be written.
    """
    picture = read_picture(target.source)
    with turns:
        try:
            picture = enlarge_picture(picture, enlarge)
        except (MemoryError, RuntimeError) as error:
            height, width = picture.colour.shape[:2]
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise ValueError(f"out of memory with {width}x{height} pixels; lower --memory, or add --tile") from None
            raise ValueError(f"the network fails on {width}x{height} pixels ({str(error).splitlines()[0]})") from None
    content = encode_picture(picture, target.kind)
    target.path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target.path, content)


def images_at_a_time(device: torch.device, images: int, memory: int) -> int:
    """The number of images to upscale at once: on a GPU 1, else one per core if images and memory allow.

    With one core per image, no core waits for the others within an operation, or while an image is read or written.
    """
    return 1 if device.type == "cuda" else max(1, min(torch.get_num_threads(), images, memory // LEAST_MEMORY))


def upscale_files(
    targets: list[Target], net: nn.Module, enlarge: Enlarge, at_a_time: int
) -> Iterator[tuple[Target, ValueError | None]]:
    """Upscale each target's image; yield each when it is done, with its error or None.

    Every thread takes an image from reading to writing; at_a_time of them are in the network. Raises OSError if a file
    cannot be written. However this ends, the threads end too, at their networks' next layer.
    """
    turns, stop, cores = threading.Semaphore(at_a_time), threading.Event(), torch.get_num_threads()

    def check(*_) -> None:
        if stop.is_set():
            raise Stopped

    def work(target: Target) -> ValueError | None:
        check()
        try:
            upscale_file(target, enlarge, turns)
        except ValueError as error:
            return error

    hooks = [module.register_forward_pre_hook(check) for module in net.modules()]
    # Besides: one thread that waits for the disk, or one for each free core; at most 8, for each holds an image.
    beside = min(8, max(1, cores - at_a_time))
    pool = ThreadPoolExecutor(at_a_time + beside, "image", torch.set_num_threads, (max(1, cores // at_a_time),))
    try:
        futures = {pool.submit(work, target): target for target in targets}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
        for hook in hooks:
            hook.remove()


def follow(done: Iterable[tuple[Target, ValueError | None]], sizes: dict[Path, float]) -> Counter:
    """Show a progress bar, name images that fail, and count images and megapixels by input and kind.

    sizes: megapixels of each source's result.
    """
    counts = Counter()
    form = "{desc} |{bar}| {rate_noinv_fmt}, {elapsed} gone, {remaining} left"
    total = sum(sizes.values())
    with tqdm(total=total, unit=" MP", bar_format=form, desc=f"0 of {len(sizes)} images", disable=None) as bar:
        for number, (target, error) in enumerate(done, 1):
            if error is not None:
                tqdm.write(f"infer.py: left out: {one_line_of(error, target)}", file=sys.stderr)
            counts[target.given, "left out" if error else "upscaled"] += 1
            counts[target.given, "MP"] += 0 if error else sizes[target.source]
            bar.set_description_str(f"{number} of {len(sizes)} images", refresh=False)
            bar.update(sizes[target.source])
    return counts


def one_line_of(error: ValueError, target: Target) -> str:
    """The error as one line that names the image."""
    text = configs.one_line(str(error))
    return text if str(target.source) in text else f"{target.source}: {text}"


def report(counts: Counter, targets: list[Target], seconds: float) -> None:
    """Print a table of what was done for each input, and the speed."""
    kinds = ("upscaled", "skipped", "left out", "MP")
    inputs = list(dict.fromkeys(target.given for target in targets))
    where = [common_folder(target.path for target in targets if target.given == given) for given in inputs]
    rows = [[given, *(counts[given, kind] for kind in kinds), folder] for given, folder in zip(inputs, where)]
    print(tabulate(rows, ["input", *kinds, "written to"], floatfmt=".1f"))
    if any(counts[given, "skipped"] for given in inputs):
        print("skipped: exists already; --overwrite replaces it")
    if megapixels := sum(counts[given, "MP"] for given in inputs):
        print(f"{megapixels:.1f} MP in {seconds:.1f} s: {megapixels / seconds:.2f} MP/s")


def common_folder(paths: Iterable[Path]) -> str:
    """The path itself if there is only one, else the folder that holds all."""
    paths = list(paths)
    return str(paths[0]) if len(paths) == 1 else os.path.commonpath([path.parent for path in paths])


def check_writable(folders: Iterable[Path]) -> None:
    """Raise ValueError if one of the folders cannot be written to."""
    for folder in folders:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        fits = existing.is_dir() and os.access(existing, os.W_OK)
        configs.expect(fits, "output", folder, "a folder that can be written to")


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Print NotCut warnings as one line each above the bar."""

    def show(message, category, *where, **options) -> None:
        if category is not NotCut:
            return before(message, category, *where, **options)
        tqdm.write(f"infer.py: {message}; --tile 512 splits it, with a slightly different result", file=sys.stderr)

    with warnings.catch_warnings():
        before, warnings.showwarning = warnings.showwarning, show
        yield


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("infer.py"):
        configs.expect(0 < args.memory <= 10**9, "memory", args.memory, f"MiB, from 1 to {10**9}")
        configs.expect(args.output != "", "output", '""', "a folder; leave it out to write beside the input")
        configs.expect(os.sep not in (args.suffix or ""), "suffix", args.suffix, "part of a file's name")
        device = setup_device(args.device)
        net, words = choose_network(args)
        print(f"network: {words}")
        tile = check_tile(net, args.tile)
        suffix = f"_x{net.scale}" if args.suffix is None else args.suffix
        targets = choose_targets(args.input, suffix, args.output, args.format, renamed=args.suffix is not None)
        check_writable({target.path.parent for target in targets})
        todo = [target for target in targets if args.overwrite or not target.path.exists()]
    net = place_frozen(net, device, args.precision).eval()
    sizes = {target.source: count_pixels(target.source) * net.scale**2 / 1e6 for target in todo}
    at_a_time = images_at_a_time(device, len(todo), args.memory << 20)
    memory = (args.memory << 20) // at_a_time
    enlarge = build_enlarge(net, device, memory, tile, args.ensemble, args.precision)
    began = time.perf_counter()
    try:
        with printed_warnings(), closing(upscale_files(todo, net, enlarge, at_a_time)) as done:
            counts = follow(done, sizes)
    except OSError as error:
        print(f"infer.py: error: not written: {error.filename} ({error.strerror})", file=sys.stderr)
        raise SystemExit(1) from None
    counts.update((target.given, "skipped") for target in targets if target.source not in sizes)
    report(counts, targets, max(time.perf_counter() - began, 1e-9))
    if any(kind == "left out" for _, kind in counts):
        raise SystemExit(1)


if __name__ == "__main__":
    with stop_signals.exit_on_signal("all files written are complete; the same command does the rest"):
        main()
