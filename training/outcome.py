"""The end of a run: the exit code and the message of each exception."""

from typing import NamedTuple

import torch

from data import ImageReadError
from runs.lock import RunFolderError

from . import distributed, stop_signals


class Outcome(NamedTuple):
    """The end of a run."""

    code: int  # the exit code
    message: str  # one line
    is_error: bool = True  # False if the run was asked to stop
    on_all_ranks: bool = False  # True if every process ends like this


def is_out_of_memory(error: BaseException) -> bool:
    """True if error means that memory ran out; for the CPU, torch raises a plain RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def outcome_of(error: BaseException, step: int) -> Outcome | None:
    """The outcome of a training that `error` ended at `step`; None for an error of the program itself."""
    if isinstance(error, stop_signals.Stopped):
        return Outcome(error.exit_code, f"\nstopped by {error} at step {step}", is_error=False, on_all_ranks=True)
    if isinstance(error, KeyboardInterrupt):
        return Outcome(128 + stop_signals.signal.SIGINT, f"\nstopped at once at step {step}", is_error=False)
    if distributed.is_peer_failure(error):
        return Outcome(1, "another process of this run was lost")
    if is_out_of_memory(error):
        reason = (str(error) or "out of memory").splitlines()[0]
        return Outcome(1, f"{reason}; take --patch, a smaller one, or less --batchsize (and --accumulate 2)")
    if isinstance(error, RunFolderError):
        return Outcome(2, str(error))
    if isinstance(error, (FloatingPointError, ImageReadError)):
        return Outcome(1, str(error).splitlines()[0], on_all_ranks=True)
    if isinstance(error, OSError):
        return Outcome(1, str(error).splitlines()[0])
    return None
