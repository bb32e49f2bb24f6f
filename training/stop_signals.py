"""SIGINT, SIGTERM and SIGUSR1: in training, finish the step and save; otherwise end at once.

The exit code is 128 + the signal's number: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1 (on Linux).
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Windows has no SIGUSR1.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(Exception):
    """Raised to end a run early, as a signal asked."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Remember signals instead of acting on them; yields a function that returns the first, or None.

    A SIGINT after another signal raises KeyboardInterrupt at once. Outside the main thread nothing changes.
    """
    received: list[int] = []

    def remember(number, frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    with _handled_by(remember):
        yield lambda: received[0] if received else None


@contextmanager
def exit_on_signal(message: str) -> Iterator[None]:
    """On a signal, print a line that ends in `message`, and exit; outside the main thread nothing changes."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    try:
        with _handled_by(interrupt):
            yield
    except KeyboardInterrupt as interrupted:
        number = next(iter(interrupted.args), signal.SIGINT)
        print(f"\nstopped by {signal.Signals(number).name}; {message}", flush=True)
        raise SystemExit(128 + number) from None


@contextmanager
def _handled_by(handler: Callable) -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS} if main else {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def survive_worker_death() -> None:
    """Let the death of a loader process surface only when its data is needed, between two steps.

    torch's SIGCHLD handler would raise in the middle of a step, and half of that step would be saved.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def ignore_signals(worker: int = 0) -> None:
    """Ignore the signals that stop a run, in loader processes and in processes about to end.

    A signal to the whole process group must not end a loader before the run's step is done, nor change the exit code
    of a process that torchrun signals because others have ended. worker: unused, for DataLoader's worker_init_fn.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
