"""Equal time: how long a step of each loss takes, and how many steps each has in the time of the cheapest.

All losses of a network are measured in one process, in turn, so that whatever else the machine does falls on all of
them alike. The figures are kept in the grid's folder: a grid that is started again takes the same.
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
BLOCK, ROUNDS = 8, 5  # a block holds at least one E-step where it is made every 2nd, 4th or 8th step only
# Settings in epochs or steps that must end with the run.
EPOCHS = ("step_epochs", "k_epochs", "udl_epoch", "pretrain_epochs")


def measure(config: Config) -> dict[str, float]:
    """Seconds per training step of each of the settings' losses, images' reading included: medians over blocks."""
    e = build_experiment(replace(config, modelpath=None, load=False))
    add_teachers(e)
    steps = BLOCK * (ROUNDS + 1) * len(e.learners)
    loader, epoch = load_batches(e.patches, e.sampler(0, steps)), float(config.startepoch)
    blocks: dict[str, list[float]] = {loss: [] for loss in config.losses}
    bar = tqdm(total=steps, desc=f"{config.model} x{config.scale}: seconds per step", unit="step", disable=None)
    for number in range(ROUNDS + 1):
        for loss, learner in zip(config.losses, e.learners):
            judge = e.judge if config.judge in learner.judges else None  # none would be asked in a run of its own
            began = now(e.device)
            for step in range(number * BLOCK, (number + 1) * BLOCK):
                lr, hr, _ = next(loader)
                lr, hr = lr.to(e.device), hr.to(e.device)
                learner.loss.begin_step(step)
                train_step([learner], judge, e.extractors, lr, hr, epoch, config.precision, config.accumulate)
            blocks[loss].append((now(e.device) - began) / BLOCK)
            bar.update(BLOCK)
    bar.close()
    return {loss: median(seconds[1:]) for loss, seconds in blocks.items()}  # the first warms up


def now(device: torch.device) -> float:
    """Seconds, when all that the device was told to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def read(out: Path) -> dict[str, dict[str, float]]:
    """What was measured in the grid's folder: {network: {loss: seconds per step}}; empty where nothing was."""
    return json.loads((out / FILE).read_text()) if (out / FILE).exists() else {}


def measured(out: Path, network: str, config: Config) -> dict[str, float]:
    """The seconds per step of the settings' losses: those on file, else measured now and added to the file.

    Losses that are new to a network are measured beside its old ones and put in proportion to them.
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
    """The settings by which a loss of `seconds` per step has the time that the cheapest, of `least`, has for its own.

    config: those of the cheapest, with steps. What is counted in steps or epochs ends with the run.
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
