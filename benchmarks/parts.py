"""The time of an iteration of train.py, by part of Algorithm 1."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from unittest import mock

import torch

from training.learner import Learner

from .machine import synchronize


def seconds_by_part(
    step: Callable[[], object], learners: Iterable[Learner], judge, device: torch.device, times: int = 3
) -> dict[str, float]:
    """Time step() by part, mean seconds of `times` calls; a part inside another counts only as itself.

    Waits for the device around every part, so that on a GPU their sum may exceed the time of step() alone.
    """
    taken, running = defaultdict(float), []

    def switch() -> None:
        synchronize(device)
        now = time.perf_counter()
        if running:
            taken[running[-1][0]] += now - running[-1][1]
            running[-1][1] = now

    def timed(name: str, function: Callable) -> Callable:
        def wrapper(*args, **kwargs):
            switch()
            running.append([name, time.perf_counter()])
            try:
                return function(*args, **kwargs)
            finally:
                switch()
                running.pop()
                if running:
                    running[-1][1] = time.perf_counter()

        return wrapper

    step()
    with ExitStack() as patched:

        def patch(owner, attribute: str, name: str) -> None:
            patched.enter_context(mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute))))

        for learner in learners:
            patch(learner.forward_with_features, "compute", "SR forward")
            patch(learner, "_guard", "finite check, clipping")
            if learner.loss.helper is not None:
                patch(learner.loss.helper, "forward", "weighting network forward")
                patch(learner.helper_opt, "step", "Adam")
            patch(learner.opt, "step", "Adam")
        patch(judge, "with_reference", "judge, reference")
        patch(judge, "compare", "judge forward")
        for learner in learners:
            if learner.loss.helper is not None:
                patch(learner.loss, "helper_loss", "E-step's samples and mixtures")
            patch(learner.loss, "forward", "M-step's samples, mixtures and loss")
        patched.enter_context(mock.patch.object(torch.Tensor, "backward", timed("backward", torch.Tensor.backward)))
        for _ in range(times):
            timed("the rest", step)()
    return {name: s / times for name, s in sorted(taken.items(), key=lambda item: -item[1])}
