"""Detect a loss that grows instead of falling, without waiting for the device in each step."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

import torch
from torch import Tensor

MULTIPLE, FIRST_MULTIPLE = 10, 100  # the limit: times the running median; before there is one, times the largest loss
RUNNING, RECENT = 500, 5  # steps in the running median, and in the recent median that is compared with it


class LossHistory:
    """The last losses of one network: a few recent ones, and those before them.

    The limit uses absolute values, since some losses, such as log-likelihoods, may be negative.
    """

    def __init__(self, phase=None):
        self.before: deque[float] = deque(maxlen=RUNNING)
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.phase = phase

    @property
    def limit(self) -> tuple[float, str]:
        """The loss above which the network counts as diverging, and that limit in words."""
        if len(self.before) < 2:
            return math.inf, ""
        if len(self.before) < 10:  # too few for a median
            return FIRST_MULTIPLE * max(map(abs, self.before)), f"{FIRST_MULTIPLE} times its first losses"
        return MULTIPLE * median(map(abs, self.before)), f"{MULTIPLE} times its running median"

    def add(self, loss: float) -> bool:
        """Add a step's loss if it is finite; return True if the recent median is above the limit."""
        if not math.isfinite(loss):
            return False
        if len(self.recent) == RECENT:
            self.before.append(self.recent[0])
        self.recent.append(loss)
        return len(self.recent) == RECENT and median(self.recent) > self.limit[0] > 0


class DivergenceWatch:
    """The losses of all networks of a run, kept on their device until `check` reads them."""

    def __init__(self, names: Iterable[str], log_every: int):
        self.histories = {name: LossHistory() for name in names}
        self.unread: deque[dict[str, Tensor]] = deque(maxlen=min(log_every, 1000))
        self.reported: set[str] = set()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Keep a step's losses: scalars on the device."""
        self.unread.append(dict(losses))

    def check(self, step: int, phases: Mapping[str, int]) -> list[str]:
        """Read the losses kept; return a line for each network found to diverge for the first time.

        Args:
            step: the step of the last losses.
            phases: each network's `Loss.phase`; a new phase begins a new history.
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
