"""The learning rate as a pure function of the step."""

import math

from configs import Config


def place_in_schedule(
    step: int, epoch_steps: int, first_step: int, last_step: int, restart_epoch: int | None = None
) -> tuple[int, int, int]:
    """The arguments of lr_at_step at a step of a run: epoch, step and total steps of the schedule.

    The schedule begins with the run, at first_step, and again at the restart_epoch if there is one in the run.
    """
    restart = last_step if restart_epoch is None else min(restart_epoch * epoch_steps, last_step)
    first, last = (first_step, restart) if step < restart else (restart, last_step)
    return (step - first) // epoch_steps, step - first, last - first


def lr_at_step(config: Config, epoch: int, step: int, total_steps: int) -> float:
    """The learning rate in `epoch` and at `step` of total_steps, counted from the schedule's begin."""
    period = config.restart_every or total_steps
    factor = {
        "constant": 1.0,
        "step": config.step_gamma ** (epoch // config.step_epochs),
        "milestones": config.step_gamma ** sum(step >= milestone for milestone in config.milestones),
        "cosine": (1 + math.cos(math.pi * (step / total_steps))) / 2,
        "restarts": (1 + math.cos(math.pi * (step % period / period))) / 2,  # SGDR, Loshchilov and Hutter, ICLR 2017
    }
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.learning_rate * warm * factor[config.schedule]


def first_and_last_step(config: Config, epoch_steps: int) -> tuple[int, int]:
    """The steps that a run begins at and ends at."""
    first = config.startepoch * epoch_steps
    return first, first + config.steps if config.steps else config.endepoch * epoch_steps


def stretched_cosine(before: Config, now: Config, epoch_steps: int, step: int) -> str | None:
    """A note if a run that resumes at `step` stretches its cosine, so that the rate jumps; else None."""
    rates = []
    for settings, at in ((before, step - 1), (now, step)):
        first, last = first_and_last_step(settings, epoch_steps)
        own = next((x.config for x in settings.variants.values() if x.config.schedule == "cosine"), None)
        if own is None:
            return None
        rate = lr_at_step(own, *place_in_schedule(max(at, first), epoch_steps, first, last))
        rates.append((last - first, rate / own.learning_rate))
    (old_steps, old), (new_steps, new) = rates
    if old_steps == new_steps or math.isclose(old, new, rel_tol=0.01):
        return None
    return (
        f"the cosine goes over {new_steps} steps instead of {old_steps}: at step {step} the learning rate jumps from "
        f"{100 * old:.3g} % of --learning-rate to {100 * new:.3g} %"
    )
