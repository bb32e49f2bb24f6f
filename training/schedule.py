"""The learning rate as a pure function of the step."""

import math

from configs import Config


def place_in_schedule(
    step: int, epoch_steps: int, first_step: int, last_step: int, restart_epoch: int | None = None
) -> tuple[int, int, int]:
    """Return what lr_at_step takes at a step of a run: the epoch, the step and the steps in all, since it began.

    The schedule begins with the run, at first_step, and again at the restart_epoch if there is one in the run.
    """
    restart = last_step if restart_epoch is None else min(restart_epoch * epoch_steps, last_step)
    first, last = (first_step, restart) if step < restart else (restart, last_step)
    return (step - first) // epoch_steps, step - first, last - first


def lr_at_step(config: Config, epoch: int, step: int, total_steps: int) -> float:
    """The learning rate in `epoch` and at `step` of total_steps, all counted from where the schedule began."""
    factor = {
        "constant": 1.0,
        "step": config.step_gamma ** (epoch // config.step_epochs),
        "milestones": config.step_gamma ** sum(step >= milestone for milestone in config.milestones),
        "cosine": (1 + math.cos(math.pi * (step / total_steps))) / 2,
    }
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.learning_rate * warm * factor[config.schedule]
