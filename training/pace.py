"""The time of a learner's steps, measured without waiting for the device."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LONGEST = 4096  # steps that are remembered


class StepTimer:
    """Measures one learner's part of the training steps: by the clock or, on a GPU, by events read later."""

    def __init__(self, device: torch.device):
        self.device, self.on_gpu = device, device.type == "cuda" and torch.cuda.is_available()
        self.marks: deque = deque(maxlen=LONGEST)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the block as one step."""
        began = self._mark()
        yield
        self.marks.append((began, self._mark()))

    def _mark(self):
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def mean(self) -> float | None:
        """Mean seconds per step since the last call; None without steps. Waits for the last step to end."""
        if not self.marks:
            return None
        if self.on_gpu:
            self.marks[-1][1].synchronize()
            seconds = [began.elapsed_time(ended) / 1000 for began, ended in self.marks]
        else:
            seconds = [ended - began for began, ended in self.marks]
        self.marks.clear()
        return sum(seconds) / len(seconds)
