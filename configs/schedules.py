"""The learning-rate schedules: factors of --learning-rate as pure functions of the step.

A new schedule is a function here and its entry in SCHEDULES; its parameters are fields of Config.
training/schedule.py adds the warm-up and the schedule's place in a run.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config


def constant(config: "Config", epoch: int, step: int, total_steps: int) -> float:
    """The full rate throughout."""
    return 1.0


def step_decay(config: "Config", epoch: int, step: int, total_steps: int) -> float:
    """A drop by --step-gamma every --step-epochs."""
    return config.step_gamma ** (epoch // config.step_epochs)


def milestone_decay(config: "Config", epoch: int, step: int, total_steps: int) -> float:
    """A drop by --step-gamma at each of --milestones."""
    return config.step_gamma ** sum(step >= milestone for milestone in config.milestones)


def cosine(config: "Config", epoch: int, step: int, total_steps: int) -> float:
    """Half a cosine, from the full rate to 0 at the schedule's end."""
    return (1 + math.cos(math.pi * (step / total_steps))) / 2


def restarts(config: "Config", epoch: int, step: int, total_steps: int) -> float:
    """Repeated cosines of --restart-every steps each: SGDR, Loshchilov and Hutter, ICLR 2017."""
    period = config.restart_every or total_steps
    return cosine(config, epoch, step % period, period)


# Called as SCHEDULES[name](config, epoch, step, total_steps), all counted from the schedule's beginning.
SCHEDULES = {
    "constant": constant,
    "step": step_decay,
    "milestones": milestone_decay,
    "cosine": cosine,
    "restarts": restarts,
}
