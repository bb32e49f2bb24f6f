"""SIGINT, SIGTERM and SIGUSR1: a run finishes its step and saves; otherwise the program ends at once.

The exit code is then 128 + the signal's number: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1 (on Linux).
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Windows has no SIGUSR1.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(Exception):
    """A run ended early because a signal asked for it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Remember signals instead of acting on them; yields a function that returns the first, or None.

    A SIGINT after another signal raises KeyboardInterrupt at once. Outside the main thread signals do what they did.
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
    """End the program on a signal with one line and its exit code; in the main thread only.

    message: the end of that line.
    """

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
    """Report the death of a process that loads data when its data is asked for, between two steps.

    torch's handler would raise its error in the middle of a step, and half of that step would be saved.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def ignore_signals(worker: int = 0) -> None:
    """Ignore the signals that stop a run: for processes that load data, or are about to end.

    A signal to the whole group must not end a loader before the run's step is done, nor change the end of a process
    that torchrun signals because others have ended.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
