"""Time `evaluate` against a plain loop over the images, or measure its memory on a large image.

python -m benchmarks.validation --folder datasets/Set5 datasets/Set14 --judge-weights alexnet.pth
python -m benchmarks.validation --large 2000 3000 --models EDSR --memory 256 2048
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import lpips
import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from tabulate import tabulate

import configs
from data import read_rgb
from data.photographs import photographs
from metrics.backbones import fill_backbone, find_backbone
from metrics.evaluate import MEMORY, evaluate
from metrics.references import ReferenceCache
from models import SR_MODELS
from models.bicubic import Bicubic
from models.ops.tiled import TiledUpscaler
from training.device import place_frozen, setup_device
from training.validation import metrics_on, read_validation_set

from .machine import another_process, in_its_own_process, peak_memory, title

PARTS = ("read", "shrink", "infer", "PSNR, SSIM", "LPIPS")
TOLERANCES = {"PSNR-Y": 2e-4, "SSIM-Y": 1e-5, "LPIPS-alex": 1e-5}
LOSSES = 4  # networks in a training with the default losses
SMALL = {"VDSR": dict(channels=16, blocks=4), "EDSR-small": dict(channels=16, blocks=4)}


def build(name: str, scale: int) -> torch.nn.Module:
    """Build a fresh network: bicubic, a small VDSR, EDSR-small, or another of SR_MODELS as published."""
    torch.manual_seed(0)
    if name == "bicubic":
        return Bicubic(scale)
    return SR_MODELS[name.removesuffix("-small")](scale=scale, **SMALL.get(name, {})).eval()


def matlab_imresize(image: np.ndarray, scale: int) -> np.ndarray:
    """Downscale (H,W,3) in float64 as ports of MATLAB's imresize do: gather pixels, then weight them."""
    for axis in (0, 1):
        size = image.shape[axis]
        centre = (np.arange(1, size // scale + 1) - 0.5) * scale + 0.5
        index = np.floor(centre - 2 * scale)[:, None] + np.arange(4 * scale + 2)
        x = np.abs(centre[:, None] - index) / scale
        weights = (1.5 * x**3 - 2.5 * x**2 + 1) * (x <= 1)
        weights += (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * ((x > 1) & (x <= 2))
        weights /= weights.sum(1, keepdims=True)
        mirror = np.concatenate([np.arange(size), np.arange(size)[::-1]])
        gathered = np.take(image, mirror[(index.astype(int) - 1) % (2 * size)], axis=axis)
        shape = [1] * gathered.ndim
        shape[axis], shape[axis + 1] = weights.shape
        image = (gathered * weights.reshape(shape)).sum(axis + 1)
    return image


def loop(net: torch.nn.Module, paths: list[Path], scale: int, distance: torch.nn.Module, clock) -> tuple[dict, dict]:
    """Score every image under protocol paper; return the scores, and the seconds of each of PARTS."""
    scores, seconds = {name: [] for name in TOLERANCES}, dict.fromkeys(PARTS, 0.0)

    def tensor(rgb: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((rgb * 2 - 1).astype(np.float32).transpose(2, 0, 1))[None]

    def luma(rgb: np.ndarray) -> np.ndarray:
        return 16 + rgb @ np.array([65.481, 128.553, 24.966])

    with torch.no_grad():
        for path in paths:
            times = [clock()]
            hr = np.array(Image.open(path).convert("RGB")) / 255
            hr = hr[: hr.shape[0] // 12 * 12, : hr.shape[1] // 12 * 12]
            times.append(clock())
            lr = matlab_imresize(hr, scale)
            times.append(clock())
            sr = net(tensor(lr)).clamp(-1, 1)
            times.append(clock())
            y_hr, y_sr = luma(hr), luma(sr[0].permute(1, 2, 0).double().numpy() / 2 + 0.5)
            scores["PSNR-Y"].append(10 * np.log10(255**2 / ((y_hr - y_sr) ** 2).mean()))
            scores["SSIM-Y"].append(
                structural_similarity(
                    y_hr, y_sr, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
                )
            )
            times.append(clock())
            scores["LPIPS-alex"].append(distance(sr, tensor(hr)).item())
            times.append(clock())
            for part, start, end in zip(PARTS, times, times[1:]):
                seconds[part] += end - start
    return scores, seconds


def loop_of(name: str, paths: list[Path], args: argparse.Namespace) -> tuple[dict, dict]:
    """Run `loop` for the network called `name`, in a process that runs nothing else."""
    torch.set_num_threads(args.threads)
    path, features = find_backbone("alex", tuple(args.judge_weights))
    with warnings.catch_warnings():  # lpips calls torchvision with a deprecated keyword
        warnings.simplefilter("ignore", UserWarning)
        distance = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    fill_backbone(distance.net, features, path)
    net = build(name, args.scale)
    with torch.inference_mode():
        distance(net(torch.zeros(1, 3, 64, 64)), torch.zeros(1, 3, 64 * args.scale, 64 * args.scale))
    return loop(net, paths, args.scale, distance, clock_of(args.threads))


def clock_of(threads: int):
    return time.process_time if threads == 1 else time.perf_counter


def compare(args: argparse.Namespace, call) -> None:
    """Print the loop's and evaluate's seconds for every network, and their ratios.

    call: computes the loop in another process; in this one malloc keeps freed memory, as in val.py.
    """
    clock = clock_of(args.threads)
    setup_device("cpu")
    metrics = metrics_on("cpu", ["alex"], tuple(args.judge_weights))
    rows, parts, totals = [], [], {}
    for name in args.models:
        net = place_frozen(build(name, args.scale), torch.device("cpu"), args.precision)  # as val.py has it
        best = None
        for _ in range(args.times):
            start = clock()
            pairs = read_validation_set(args.folder, args.scale, "paper")
            read = clock() - start
            wanted, seconds = call(loop_of, name, pairs.paths, args)
            taken = []
            cache = ReferenceCache()
            for _ in range(2):
                start = clock()
                found = evaluate(
                    TiledUpscaler(net, MEMORY), pairs, metrics, "paper", precision=args.precision, cache=cache
                )
                taken.append(clock() - start)
            off = {key: np.abs(np.subtract(found[key], wanted[key])).max() for key in TOLERANCES}
            if args.precision == "fp32":
                configs.expect(
                    all(off[key] <= TOLERANCES[key] for key in off),
                    "models",
                    name,
                    f"the loop's scores, within {TOLERANCES}; found {off}",
                )
            infer = infer_again(net, pairs, clock, args.precision)
            now = (sum(seconds.values()), read, *taken, infer)
            best = now if best is None else tuple(map(min, best, now))
        totals[name] = naive, read, first, later, infer = best
        rows.append([name, naive, read + first, later, infer, naive / (read + first), naive / later])
        parts.append([name, *(seconds[part] for part in PARTS), *(f"{x:.1e}" for x in off.values())])
    print(
        f"x{args.scale}, {len(pairs)} images, protocol paper, {args.precision}, {title(torch.device('cpu'))}, "
        f"{'CPU' if args.threads == 1 else 'wall'} seconds, least of {args.times}"
    )
    headers = ["network", "loop", "reading + first", "again", "of it the network", "ratio once", "ratio again"]
    print(tabulate(rows, headers, floatfmt=".2f"))
    print(
        "\nwhere the loop's time goes (last round):\n"
        + tabulate(
            parts,
            ["network", *PARTS, *(f"{name} off" for name in TOLERANCES)],
            floatfmt=".2f",
            disable_numparse=range(1 + len(PARTS), 1 + len(PARTS) + len(TOLERANCES)),
        )
    )
    if "bicubic" in totals:
        plain = totals["bicubic"]
        for name, (naive, read, first, later, _) in totals.items():
            if name != "bicubic":
                ratio = (plain[0] + LOSSES * naive) / (plain[1] + plain[2] + LOSSES * later)
                print(
                    f"val.py, bicubic and {LOSSES} networks {name}: ratio {ratio:.2f}; "
                    f"each epoch of a training of {LOSSES}: {naive / later:.2f}"
                )


def infer_again(net: torch.nn.Module, pairs, clock, precision: str) -> float:
    """Time the network alone on the LR images."""
    images = [pairs[i][0][None] for i in range(len(pairs))]
    start = clock()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for lr in images:
            net(lr)
    return clock() - start


def scores_and_peak(name: str, folder: str, scale: int, memory: int, threads: int) -> tuple[dict, float, float]:
    """Score one network on a folder within `memory` bytes; return scores, peak resident MiB and seconds."""
    torch.set_num_threads(threads)
    net = place_frozen(build(name, scale), setup_device("cpu"), "fp32")
    pairs, found = read_validation_set([folder], scale, "paper", ()), {}
    start = time.process_time()
    peak = peak_memory(
        lambda: found.update(evaluate(TiledUpscaler(net, memory), pairs, {}, "paper")), torch.device("cpu")
    )
    return found, peak, time.process_time() - start


def measure_memory(args: argparse.Namespace) -> None:
    """Print peak memory and scores on one large image, without a bound and within each of --memory."""
    height, width = args.large
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photograph = Image.fromarray(read_rgb(photographs("skimage:astronaut")[0]))
        photograph.resize((width, height), Image.Resampling.BICUBIC).save(Path(folder) / "large.png", compress_level=1)
        for name in args.models:
            for memory in (1 << 50, *(mib << 20 for mib in args.memory)):
                found, peak, seconds = in_its_own_process(
                    scores_and_peak, name, folder, args.scale, memory, args.threads
                )
                bound = "none" if memory == 1 << 50 else f"{memory >> 20}"
                rows.append([name, bound, f"{peak:.0f}", f"{seconds:.1f}", *(f"{v[0]:.6f}" for v in found.values())])
    print(f"one HR image of {height}x{width}, x{args.scale}, {title(torch.device('cpu'))}")
    print(tabulate(rows, ["network", "--memory MiB", "peak MiB", "CPU s", "PSNR-Y", "SSIM-Y"], disable_numparse=True))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = configs.OneLineParser(prog="benchmarks.validation", description="evaluate against a plain loop.")
    parser.add_argument("--folder", nargs="+", default=[], metavar="DIR", help="HR images")
    parser.add_argument("--judge-weights", nargs="+", default=[], metavar="FILE", help="AlexNet's")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=("bicubic", "EDSR-small", *SR_MODELS),
        default=["bicubic", "VDSR", "EDSR"],
        help="networks; VDSR is a small one here",
    )
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic of the network")
    parser.add_argument("--threads", type=int, default=1, help="1: CPU seconds; more: wall seconds (default: 1)")
    parser.add_argument("--times", type=int, default=1, help="rounds; the fastest counts (default: 1)")
    parser.add_argument(
        "--large", type=int, nargs=2, metavar=("H", "W"), help="measure memory on one image of this size instead"
    )
    parser.add_argument("--memory", type=int, nargs="+", default=[256, 2048], metavar="MIB", help="bounds to try")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    with configs.one_line_errors("benchmarks.validation"):
        if args.large:
            measure_memory(args)
        else:
            configs.expect(bool(args.folder), "folder", "", "one or more folders of HR images")
            with another_process() as call:
                compare(args, call)


if __name__ == "__main__":
    main()
