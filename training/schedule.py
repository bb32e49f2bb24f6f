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
    return config.learning_rate * factor[config.schedule]
