"""Being asked to stop: SIGINT, SIGTERM and SIGUSR1 let a run finish its step and save; where no run is under way they
end the program at once.

The exit code is then 128 + the signal's number: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1 (on Linux).
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Windows has no SIGUSR1.
HEEDED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(Exception):
    """A run ended early because a signal asked for it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Within, a signal is only remembered; yields a function that returns it, or None where none has come.

    A SIGINT after another signal raises KeyboardInterrupt at once. Outside the main thread signals do what they did.
    """
    come: list[int] = []

    def remember(number, frame):
        if come and number == signal.SIGINT:
            raise KeyboardInterrupt
        come.append(number)

    with _handled_by(remember):
        yield lambda: come[0] if come else None


@contextmanager
def exit_on_signal(words: str) -> Iterator[None]:
    """Within, a signal ends the program: one line, which says `words`, and its exit code. In the main thread only."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    try:
        with _handled_by(interrupt):
            yield
    except KeyboardInterrupt as interrupted:
        number = next(iter(interrupted.args), signal.SIGINT)
        print(f"\nstopped by {signal.Signals(number).name}; {words}", flush=True)
        raise SystemExit(128 + number) from None


@contextmanager
def _handled_by(handler: Callable) -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in HEEDED} if main else {}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def survive_worker_death() -> None:
    """From now on a process that loads data and dies is found when its data is asked for, between two steps.

    torch's handler would raise its error in the middle of a step, of which half would be in what is saved then.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def ignore_signals(worker: int = 0) -> None:
    """For a process that loads data: a signal to the whole group must not end it before the run's step is done.

    And for one of torchrun's that is about to end: torchrun's signal, as others have ended, must not change how.
    """
    for number in HEEDED:
        signal.signal(number, signal.SIG_IGN)
