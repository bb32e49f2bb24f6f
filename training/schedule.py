"""The learning rate as a pure function of the step."""

import math

from configs import Config


def lr_at_step(config: Config, epoch: int, step: int, total_steps: int) -> float:
    """The learning rate in `epoch` and at `step` of the run's total_steps, counted from 0."""
    factor = {
        "constant": 1.0,
        "step": config.step_gamma ** ((epoch - config.startepoch) // config.step_epochs),
        "milestones": config.step_gamma ** sum(step >= milestone for milestone in config.milestones),
        "cosine": (1 + math.cos(math.pi * (step / total_steps))) / 2,
    }
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.learning_rate * warm * factor[config.schedule]
