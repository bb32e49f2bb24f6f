"""The end of a run: the exit code and the message of each exception."""

from typing import NamedTuple

import torch

from data import ImageReadError
from runs.lock import RunFolderError

from . import distributed, stop_signals


class Outcome(NamedTuple):
    """The end of a run.

    code: the exit code. message: one line; an error unless the run was asked to stop. on_all_ranks: all end so.
    """

    code: int
    message: str
    is_error: bool = True
    on_all_ranks: bool = False


def is_out_of_memory(error: BaseException) -> bool:
    """True if error is a lack of memory."""
    # On the CPU torch has no class of its own for it.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def outcome_of(error: BaseException, step: int) -> Outcome | None:
    """The outcome of a training that ended at `step` with error; None for an error of the program itself."""
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
