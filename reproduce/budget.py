"""Equal time: measure the time of each loss's step, and give each the time of the cheapest loss.

All losses of a network are measured in turn in one process, so that other work on the machine slows all of them alike.
The times are kept in the grid's folder, so that a grid that is started again uses the same.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from configs import Config
from data import load_batches
from runs.atomic import atomic_write
from train import train_step
from training.experiment import add_teachers, build_experiment

FILE = "seconds_per_step.json"
BLOCK, ROUNDS = 8, 5  # steps per block: with --e-every 2, 4 or 8, each block has an E-step
# Settings in epochs that scale with the length of the run.
EPOCHS = ("step_epochs", "k_epochs", "udl_epoch", "pretrain_epochs")


def measure(config: Config) -> dict[str, float]:
    """Measure the seconds per training step of each loss, reading images included: medians over blocks."""
    e = build_experiment(replace(config, modelpath=None, load=False))
    add_teachers(e)
    steps = BLOCK * (ROUNDS + 1) * len(e.learners)
    loader, epoch = load_batches(e.patches, e.sampler(0, steps)), float(config.startepoch)
    blocks: dict[str, list[float]] = {loss: [] for loss in config.losses}
    bar = tqdm(total=steps, desc=f"{config.model} x{config.scale}: seconds per step", unit="step", disable=None)
    for number in range(ROUNDS + 1):
        for loss, learner in zip(config.losses, e.learners):
            judge = e.judge if config.judge in learner.judges else None  # as in a run with this loss alone
            began = now(e.device)
            for step in range(number * BLOCK, (number + 1) * BLOCK):
                lr, hr, _ = next(loader)
                lr, hr = lr.to(e.device), hr.to(e.device)
                learner.loss.begin_step(step)
                train_step([learner], judge, e.extractors, lr, hr, epoch, config.precision, config.accumulate)
            blocks[loss].append((now(e.device) - began) / BLOCK)
            bar.update(BLOCK)
    bar.close()
    return {loss: median(seconds[1:]) for loss, seconds in blocks.items()}  # the first block warms up


def now(device: torch.device) -> float:
    """The clock in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def read(out: Path) -> dict[str, dict[str, float]]:
    """Read the grid's file: {network and scale: {loss: seconds per step}}; empty if there is none."""
    return json.loads((out / FILE).read_text()) if (out / FILE).exists() else {}


def measured(out: Path, network: str, config: Config) -> dict[str, float]:
    """The seconds per step of config's losses: from the file, else measured now and added to it.

    network: with its scale, the key in the file. If a loss is new, all are measured again, and the new one's time is
    scaled by how the others' times compare with the file's.
    """
    known = read(out)
    old = known.get(network, {})
    if not set(config.losses) <= set(old):
        new = measure(config)
        both = [loss for loss in new if loss in old]
        ratio = median(old[loss] / new[loss] for loss in both) if both else 1.0
        old = {loss: seconds * ratio for loss, seconds in new.items()} | old
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / FILE, (json.dumps(known | {network: old}, indent=1) + "\n").encode())
    return {loss: old[loss] for loss in config.losses}


def in_equal_time(config: Config, seconds: float, least: float) -> dict:
    """The settings that give a loss of `seconds` per step the same total time as the cheapest, of `least`.

    config: the cheapest loss's settings, with steps. Schedules in steps or epochs shrink in proportion.
    """
    share = least / seconds
    scaled = {
        name: max(1, round(config.steps * share)) if name == "steps" else getattr(config, name) * share
        for name in ("steps", *EPOCHS)
    }
    for name in ("step_epochs", "udl_epoch"):
        scaled[name] = max(1, round(scaled[name]))
    milestones = sorted({max(1, round(step * share)) for step in config.milestones})
    scaled |= {"restart_every": max(1, round(config.restart_every * share))} if config.restart_every else {}
    return scaled | ({"milestones": milestones} if milestones else {})
