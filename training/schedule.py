"""The learning rate at each step of a run. The schedules themselves: configs/schedules.py."""

import math

from configs import SCHEDULES, Config


def place_in_schedule(
    step: int, epoch_steps: int, first_step: int, last_step: int, restart_epoch: int | None = None
) -> tuple[int, int, int]:
    """The epoch, step and total steps of the schedule at a step of a run: arguments of lr_at_step.

    The schedule begins at the run's first_step, and again at restart_epoch if the run gets that far.
    """
    restart = last_step if restart_epoch is None else min(restart_epoch * epoch_steps, last_step)
    first, last = (first_step, restart) if step < restart else (restart, last_step)
    return (step - first) // epoch_steps, step - first, last - first


def lr_at_step(config: Config, epoch: int, step: int, total_steps: int) -> float:
    """The learning rate in `epoch` and at `step` of total_steps, counted from the schedule's beginning."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return config.learning_rate * warm * SCHEDULES[config.schedule](config, epoch, step, total_steps)


def first_and_last_step(config: Config, epoch_steps: int) -> tuple[int, int]:
    """The steps at which a run begins and ends."""
    first = config.startepoch * epoch_steps
    return first, first + config.steps if config.steps else config.endepoch * epoch_steps


def stretched_schedule(before: Config, now: Config, epoch_steps: int, step: int) -> str | None:
    """A note if the learning rate jumps at `step`, because the run resumes with another length; else None."""
    (first, old_last), (_, new_last) = (first_and_last_step(config, epoch_steps) for config in (before, now))

    def share(config: Config, at: int, last: int) -> float:
        place = place_in_schedule(max(at, first), epoch_steps, first, last)
        return lr_at_step(config, *place) / config.learning_rate

    if old_last == new_last or step > old_last or step >= new_last:
        return None
    for (_, was), (_, own) in zip(before.variants.values(), now.variants.values()):
        by_length = [share(own, step - 1, last) for last in (old_last, new_last)]
        old, new = share(was, step - 1, old_last), share(own, step, new_last)
        depends = was.schedule == own.schedule and not math.isclose(*by_length, rel_tol=1e-9)
        if depends and not math.isclose(old, new, rel_tol=0.01):
            return (
                f"the {own.schedule} goes over {new_last - first} steps instead of {old_last - first}: at step {step} "
                f"the learning rate jumps from {100 * old:.3g} % of --learning-rate to {100 * new:.3g} %"
            )
    return None
