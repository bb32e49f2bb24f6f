"""Notice a loss that grows instead of falling, without waiting for the device in a step."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

import torch
from torch import Tensor

MULTIPLE, FIRST_MULTIPLE = 10, 100  # of a loss's own running median; of the largest before there is one
RUNNING, RECENT = 500, 5  # steps of the running median, and of the one that is compared with it


class LossHistory:
    """The last losses of one network: a few recent ones, and those before them.

    They count by their absolute values there, for some losses, such as log-likelihoods, may be negative.
    """

    def __init__(self, phase=None):
        self.before: deque[float] = deque(maxlen=RUNNING)
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.phase = phase

    @property
    def limit(self) -> tuple[float, str]:
        """The loss from which a network diverges, and what that is."""
        if len(self.before) < 2:
            return math.inf, ""
        if len(self.before) < 10:  # too few for a median
            return FIRST_MULTIPLE * max(map(abs, self.before)), f"{FIRST_MULTIPLE} times its first losses"
        return MULTIPLE * median(map(abs, self.before)), f"{MULTIPLE} times its running median"

    def add(self, loss: float) -> bool:
        """Take a step's loss, if it is finite; return whether the recent ones are beyond the limit."""
        if not math.isfinite(loss):
            return False
        if len(self.recent) == RECENT:
            self.before.append(self.recent[0])
        self.recent.append(loss)
        return len(self.recent) == RECENT and median(self.recent) > self.limit[0] > 0


class DivergenceWatch:
    """The losses of all networks of a run, kept on their device until they are asked for."""

    def __init__(self, names: Iterable[str], log_every: int):
        self.histories = {name: LossHistory() for name in names}
        self.unread: deque[dict[str, Tensor]] = deque(maxlen=min(log_every, 1000))
        self.reported: set[str] = set()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Remember a step's losses, scalars on the device."""
        self.unread.append(dict(losses))

    def check(self, step: int, phases: Mapping[str, int]) -> list[str]:
        """Read the losses remembered and return a line for each network that has begun to diverge.

        Args:
            step: that of the last losses.
            phases: `Loss.phase` of each network; a history is of one phase.
        """
        lines = []
        for name, history in self.histories.items():
            if history.phase not in (None, phases[name]):  # the losses read now may be of both
                self.histories[name] = LossHistory(phases[name])
                continue
            history.phase = phases[name]
            losses = torch.stack([losses[name] for losses in self.unread]).tolist() if self.unread else []
            for at, loss in enumerate(losses, step - len(losses) + 1):
                if history.add(loss) and name not in self.reported:
                    self.reported.add(name)
                    limit, meaning = history.limit
                    lines.append(
                        f"{name} diverges: at step {at} its loss is {median(history.recent):.3g}, beyond {limit:.3g}, "
                        f"which is {meaning}; take --warmup 500, --clip-grad 0.1 or a lower --learning-rate"
                    )
        self.unread.clear()
        return lines
