"""Measure how a step's time grows with image size, batch, T and losses, and memory with steps.

    python -m benchmarks.growth

The time should be linear in each, the memory constant. Draws docs/growth.png.
"""

from pathlib import Path
from statistics import median

import matplotlib
import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

import configs
import train
from configs import Config
from metrics.tiny import Tiny
from training.device import fast_memory_format, place_frozen, setup_device
from training.learner import build_learners

from .machine import resident, title, turns

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

MIDDLE = {"pixels": 48**2, "batch": 2, "T": 3, "losses": 2}
AXES = {
    "pixels": [size**2 for size in (48, 72, 96, 120, 144)],
    "batch": [1, 4, 8, 12, 16],
    "T": [1, 6, 12, 24, 48],
    "losses": [1, 2, 3, 4],
}
LABELS = {"pixels": "HR pixels of an image", "batch": "batch", "T": "T, samples in the M-step", "losses": "losses"}


def prepared_step(device: torch.device, pixels: int, batch: int, T: int, losses: int):
    """Return a function that runs one iteration of a small EDSR x4 with the judge tiny.

    losses: the number of copies of L1+TLW, so that each costs the same.
    """
    config = Config(model="EDSR", model_options={"blocks": 4, "channels": 32}, losses=("L1+TLW",), samples=T, scale=4)
    learners = [learner for _ in range(losses) for learner in build_learners(config, device)]
    judge = place_frozen(Tiny(), device, "fp32")
    size = round(pixels**0.5)
    hr = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    lr = torch.nn.functional.interpolate(hr, scale_factor=1 / 4, mode="area")
    lr, hr = (x.contiguous(memory_format=fast_memory_format(device, "fp32")) for x in (lr, hr))
    return lambda: train.train_step(learners, judge, {}, lr, hr, 0.0, "fp32")


def held(device: torch.device) -> float:
    """The MiB in use now: of the GPU's memory, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return resident("VmRSS")


def main(argv: list[str] | None = None) -> None:
    parser = configs.OneLineParser(prog="benchmarks.growth", description="Time and memory of a step, against its size.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--times", type=int, default=7, help="timed steps of each size (default: 7)")
    parser.add_argument("--steps", type=int, default=1000, help="steps over which to follow memory (default: 1000)")
    parser.add_argument("--out", type=Path, default=Path("docs/growth.png"), metavar="FILE")
    args = parser.parse_args(argv)
    device = setup_device(args.device)
    figure, panels = plt.subplots(1, 5, figsize=(17, 3.2), constrained_layout=True)
    rows = []
    for panel, (axis, values) in zip(panels, tqdm(AXES.items(), "sizes", leave=False, disable=None)):
        works = {value: prepared_step(device, **(MIDDLE | {axis: value})) for value in values}
        taken = turns(works, args.times, device)
        seconds = [median(taken[value]) for value in values]
        slope, start = np.polyfit(values, seconds, 1)
        fit = np.corrcoef(values, seconds)[0, 1] ** 2
        rows.append([LABELS[axis], f"{values[0]} to {values[-1]}", seconds[0], seconds[-1], start, fit])
        panel.plot(values, seconds, "o", label="median step")
        panel.plot(values, start + slope * np.array(values), "-", label=f"line, R² = {fit:.3f}")
        panel.set(xlabel=LABELS[axis], ylim=(0, 1.15 * max(seconds)), xlim=(0, None))
        panel.legend(frameon=False)
    panels[0].set_ylabel("seconds a step")

    step = prepared_step(device, **(MIDDLE | {"batch": 1}))
    memory = []
    for _ in tqdm(range(args.steps), "memory", leave=False, disable=None):
        step()
        memory.append(held(device))
    panels[4].plot(range(1, args.steps + 1), memory)
    panels[4].set(xlabel="steps", ylabel="MiB in use", ylim=(0, 1.2 * max(memory)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)
    print(f"EDSR x4 (4 blocks, 32 channels), judge tiny, {title(device)}; otherwise {MIDDLE}")
    print(tabulate(rows, ["against", "from, to", "s at first", "s at last", "s at 0", "R2 of a line"], floatfmt=".3f"))
    early, late = memory[len(memory) // 10], memory[-1]
    print(f"memory in use after {len(memory) // 10} steps: {early:.0f} MiB, after {len(memory)}: {late:.0f} MiB")
    print(f"drawn: {args.out}")


if __name__ == "__main__":
    main()
