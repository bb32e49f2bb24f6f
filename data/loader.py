"""The batches of a run from any step on; unreadable images and dead worker processes are handled.

An epoch's batches depend on (seed, epoch) only, so that a resumed run gets the same ones.
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from .datasets import ImageReadError
from .patches import PatchDataset


class ResumableBatchSampler(Sampler[list[tuple[int, int]]]):
    """The batch sampler of `PatchDataset`: a list of (epoch, index) keys for each step.

    n images, each drawn `repeat` times per epoch as different patches (indices n apart). An epoch's order depends on
    (seed, epoch) only: the steps [first_step, last_step) are a part of one endless sequence. An epoch's incomplete last
    batch is dropped; too few images for one batch are repeated until they fill it. share: (i, m) yields the i-th of m
    equal parts of each batch, i from 0.
    """

    def __init__(
        self,
        n: int,
        batchsize: int,
        seed: int,
        first_step: int = 0,
        last_step: int = sys.maxsize,
        repeat: int = 1,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        for name, value in (("n", n), ("batchsize", batchsize), ("repeat", repeat)):
            if value < 1:
                raise ValueError(f"{name}={value} is too small; use 1 or more")
        if not 0 <= first_step <= last_step:
            raise ValueError(f"first_step={first_step} is not within 0..last_step={last_step}; use a step in between")
        self.n, self.batchsize, self.seed = n, batchsize, seed
        self.first_step, self.last_step = first_step, last_step
        self.own = slice(share[0] * batchsize // share[1], (share[0] + 1) * batchsize // share[1])
        self.repeat = max(repeat, -(-batchsize // n))
        self.steps_per_epoch = max(1, n * repeat // batchsize)

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        for step in range(self.first_step, self.last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if not batch or not order:
                order = self._order(epoch)
            yield [(epoch, index) for index in order[batch * self.batchsize : (batch + 1) * self.batchsize][self.own]]

    def _order(self, epoch: int) -> list[int]:
        # The fourth number makes this stream differ from those of the patches.
        random = np.random.default_rng([self.seed, epoch, 0, 1])
        return np.concatenate([random.permutation(self.n) + self.n * again for again in range(self.repeat)]).tolist()


class Draws(Dataset):
    """Patches of a PatchDataset with its read errors: `draws[epoch, index]` -> lr, hr, error messages.

    substitute: replace an unreadable image by the next readable one in the order of indices; otherwise, or if there is
    none, lr and hr are None.
    """

    def __init__(self, patches: PatchDataset, substitute: bool):
        self.patches, self.substitute = patches, substitute

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, Tensor | None, list[str]]:
        epoch, index = key
        reasons = []
        for number in range(index, index + (len(self) if self.substitute else 1)):
            try:
                return *self.patches[epoch, number], reasons
            except ImageReadError as error:
                reasons.append(str(error))
        return None, None, reasons


def _collate(draws: list[tuple]) -> tuple[Tensor | None, Tensor | None, list[str]]:
    reasons = [reason for *_, some in draws for reason in some]
    if any(lr is None for lr, *_ in draws):
        return None, None, reasons
    return *default_collate([(lr, hr) for lr, hr, _ in draws]), reasons


def load_batches(
    patches: PatchDataset,
    batches: ResumableBatchSampler,
    *,
    substitute: bool = False,
    workers: int = 0,
    pinned: bool = False,
    begin_worker: Callable[[int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yield lr (B,3,h,w) and hr (B,3,H,W) in [-1,1] of each batch, and a line per replaced image.

    substitute: as in Draws. begin_worker: DataLoader's worker_init_fn.

    Raises ImageReadError if an image can no longer be read and is not replaced, or a worker process has died; all
    workers have ended then.
    """
    return _watched(
        iter(
            DataLoader(
                Draws(patches, substitute),
                batch_sampler=batches,
                num_workers=workers,
                pin_memory=pinned,
                collate_fn=_collate,
                worker_init_fn=begin_worker,
            )
        )
    )


def _watched(loader: Iterator) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    try:
        while True:
            try:
                lr, hr, reasons = next(loader)
            except StopIteration:
                return
            except (RuntimeError, EOFError, ConnectionError) as error:
                # torch has no class for a dead worker; EOFError and ConnectionError: it died handing over a batch.
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                error.__traceback__ = None  # it holds the loader too
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise ImageReadError(
                    f"a data-loading process has died ({reason}), usually for lack of memory; take "
                    "fewer --workers, or 0"
                ) from None
            if lr is None:
                raise ImageReadError(reasons[0])
            yield lr, hr, reasons
    finally:
        # Otherwise an error's traceback keeps the workers, which ignore SIGTERM, and this process cannot end.
        del loader
