"""Time infer.py against a plain loop over the same images, from PNG to PNG, each in its own process.

python -m benchmarks.infer --folder datasets/Set14 datasets/BSDS200

Each image is downscaled by MATLAB's bicubic to a PNG; both read these, upscale them with a network with fresh weights,
and write PNGs. Wall seconds, without starting Python: the median of the turns, and the fastest, which is more reliable
on a busy machine. The plain loop is what most repositories have: Pillow, the network, Pillow; once with Pillow's
default PNG compression, once with the fastest.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

import configs
import infer
from data import PairedDataset
from models import build_network, model_id
from runs.checkpoint import load_networks, serialize

from .machine import title, turns_apart

CPU = torch.device("cpu")


def write_inputs(folders: list[str], scale: int, out: Path) -> int:
    """Write the folders' images, downscaled, as PNGs to out; return the number of pixels after upscaling."""
    pairs = PairedDataset(folders, scale, scale, round_lr=True)
    out.mkdir()
    for number in range(len(pairs)):
        lr = ((pairs[number][0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(lr).save(out / f"{number:03d}.png")
    return sum(height * width for height, width in pairs.sizes)


def write_run(run: Path, model: str, scale: int, options: dict) -> None:
    """Write a run's folder with one network with fresh weights."""
    torch.manual_seed(0)
    net, name = build_network(model, scale, options), model_id(model, scale, options)
    run.mkdir()
    config = configs.Config(model=model, scale=scale, losses=("L1",), model_options=options)
    (run / "config.yaml").write_bytes(configs.to_yaml(config))
    (run / "best_L1.pt").write_bytes(serialize({"sr_network": net.state_dict(), "model_id": name, "judges": []}))


def build_loop(inputs: Path, run: Path, out: Path, threads: int, level: int | None):
    """Build the plain loop as a function; level: of PNG compression, None for Pillow's default."""
    torch.set_num_threads(threads)
    net = load_networks(run, "best")[1]["L1"].eval()
    options = {} if level is None else {"compress_level": level}
    out.mkdir()

    def loop() -> None:
        with torch.no_grad():
            for path in sorted(inputs.iterdir()):
                lr = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1
                sr = net(torch.from_numpy(lr.transpose(2, 0, 1))[None]).clamp(-1, 1)
                pixels = ((sr[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(out / path.name, **options)

    return loop


def build_infer(inputs: Path, run: Path, out: Path, threads: int):
    """Build a function that runs infer.py."""
    torch.set_num_threads(threads)
    command = ["--input", str(inputs), "--modelpath", str(run), "--output", str(out), "--overwrite", "--device", "cpu"]

    def quietly() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            infer.main(command)

    return quietly


def check_same(one: Path, other: Path) -> None:
    """Raise ValueError if the images in two folders differ by more than rounding."""
    for path in sorted(one.iterdir()):
        apart = np.abs(np.asarray(Image.open(path), dtype=int) - np.asarray(Image.open(other / path.name)))
        if apart.max() > 1 or (apart > 0).mean() > 1e-3:
            raise ValueError(f"{path.name} is another image in {other}: up to {apart.max()} levels apart")


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = configs.OneLineParser(prog="benchmarks.infer", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", nargs="+", required=True, metavar="DIR", help="images to shrink, then to upscale")
    parser.add_argument("--model", default="EDSR")
    parser.add_argument("--model-options", nargs="*", default=["channels=16", "blocks=4"], metavar="NAME=VALUE")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--times", type=int, default=5, help="timed turns (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    options = configs.parse_pairs(args.model_options, "--model-options", "blocks=4")
    with tempfile.TemporaryDirectory() as folder:
        inputs, run = Path(folder, "lr"), Path(folder, "run")
        pixels = write_inputs(args.folder, args.scale, inputs)
        write_run(run, args.model, args.scale, options)
        outs = {name: Path(folder, f"sr_{i}") for i, name in enumerate(("loop", "loop, PNG level 1", "infer.py"))}
        common = {name: (inputs, run, out, args.threads) for name, out in outs.items()}
        works = {
            "loop": (build_loop, *common["loop"], None),
            "loop, PNG level 1": (build_loop, *common["loop, PNG level 1"], 1),
            "infer.py": (build_infer, *common["infer.py"]),
        }
        taken = turns_apart(works, args.times, CPU)
        check_same(outs["loop"], outs["infer.py"])
        rows = []
        for name, seconds in taken.items():
            row = [name]
            for kind in (statistics.median, min):
                row += [kind(seconds), pixels / 1e6 / kind(seconds), kind(taken["loop"]) / kind(seconds)]
            rows.append([*row, megabytes(outs[name])])
        count = len(list(inputs.iterdir()))
    torch.set_num_threads(args.threads)
    print(f"{args.model} {options} x{args.scale}, {count} images, {pixels / 1e6:.1f} megapixels out, {title(CPU)}")
    headers = ["", "seconds", "MP/s", "times the loop", "fastest", "MP/s", "times the loop", "MB written"]
    print(tabulate(rows, headers, floatfmt=("", *[".2f"] * 6, ".1f")))


if __name__ == "__main__":
    main()
