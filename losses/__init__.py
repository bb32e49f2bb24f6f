"""Every loss a run can train with, by the name it has on the command line.

A loss is built from the run's settings and called as loss(sr, target, epoch) -> scalar; where something
besides the SR network learns (TLW's weighting network), it is the loss's `helper` and descends
loss.helper_loss(sr, target, epoch) first. A new loss: one file here, one line in LOSSES.
"""

from functools import partial

from .pixel import PixelLoss, absolute_error, squared_error
from .target import Target
from .tlw import TLW, k_schedule, weight_criterion

__all__ = ["LOSSES", "NEEDS_JUDGE", "TLW", "PixelLoss", "Target", "k_schedule", "weight_criterion"]


def _tlw(pixel: str, settings) -> TLW:
    k = partial(k_schedule, k_start=settings.k_start, k_end=settings.k_end, k_epochs=settings.k_epochs)
    return TLW(pixel, samples=settings.samples, eps=settings.eps, k=k, m_step=settings.m_step)


LOSSES = {
    "L1+TLW": partial(_tlw, "L1"),
    "MSE+TLW": partial(_tlw, "MSE"),
    "L1": lambda settings: PixelLoss(absolute_error),
    "MSE": lambda settings: PixelLoss(squared_error),
}
NEEDS_JUDGE = {"L1+TLW", "MSE+TLW"}
