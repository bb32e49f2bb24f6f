"""The batches of a run in the order of its steps, while images may go bad and processes that load them may die."""

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from .datasets import Batches, Patches, Unreadable


class Draws(Dataset):
    """What Patches holds, and what went wrong: `draws[epoch, index]` -> lr, hr, reasons; None, None where none is left.

    substitute: an image that has gone bad is replaced in this draw by the next good one, counting on from its index,
    so that the draw depends on nothing but the key and which images are bad. Without it a bad one leaves no draw.
    """

    def __init__(self, patches: Patches, substitute: bool):
        self.patches, self.substitute = patches, substitute

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | None, Tensor | None, list[str]]:
        epoch, index = key
        reasons = []
        for number in range(index, index + (len(self) if self.substitute else 1)):
            try:
                return *self.patches[epoch, number], reasons
            except Unreadable as error:
                reasons.append(str(error))
        return None, None, reasons


def _collate(draws: list[tuple]) -> tuple[Tensor | None, Tensor | None, list[str]]:
    reasons = [reason for *_, some in draws for reason in some]
    if any(lr is None for lr, *_ in draws):
        return None, None, reasons
    return *default_collate([(lr, hr) for lr, hr, _ in draws]), reasons


def load(
    patches: Patches,
    batches: Batches,
    *,
    substitute: bool = False,
    workers: int = 0,
    pinned: bool = False,
    begin_worker: Callable[[int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """lr (B,3,h,w), hr (B,3,H,W) in [-1,1] of each batch, and a line for each image that was replaced in it.

    substitute: as in Draws. begin_worker: called in each process that loads. Raises Unreadable, between two batches,
    where an image cannot be read any more and is not replaced, and where a process that loads has died.
    """
    return _watched(iter(
        DataLoader(Draws(patches, substitute), batch_sampler=batches, num_workers=workers, pin_memory=pinned,
                   collate_fn=_collate, worker_init_fn=begin_worker)
    ))  # fmt: skip


def _watched(loader: Iterator) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    while True:
        try:
            lr, hr, reasons = next(loader)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):  # torch's words, in an error of no class of its own
                raise
            raise Unreadable(f"a process that loads data has died ({str(error).splitlines()[0]}), most often for want "
                             "of memory; take fewer --workers, or 0") from None  # fmt: skip
        if lr is None:
            raise Unreadable(reasons[0])
        yield lr, hr, reasons
