"""Pictures over the epochs: at each validation, parts of images and of the weights in them.

    RUN/watch/0007.npz      of epoch 7 (step_7.npz: of step 7), uint8 arrays by their keys, 0 to 255 for 0 to 1:
        IMAGE/hr            (h,w,3), the middle of an image
        IMAGE/LOSS/sr       (h,w,3), as the network of that loss makes it
        IMAGE/LOSS/weights  (h,w), the mean over the channels of the loss's weights, if it has a weighting network
    and, float64: IMAGE/LOSS/k, the weights' mean in that epoch.

About 100 KiB for each image and loss. The same weights and epoch give the same file.
"""

import io
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from data import PairedDataset
from models.ops.tiled import TiledUpscaler

from .figures import weights_of
from .learner import Learner

SIDE = 192  # HR pixels of the part, at most
MARGIN = 16  # LR pixels around it that the SR networks see too
FOLDER = "watch"


def pixels(image: Tensor) -> np.ndarray:
    """image (3 or 1,H,W) in [-1,1] -> uint8 (H,W,3)."""
    return levels(image / 2 + 0.5).repeat(3 // len(image), axis=0).transpose(1, 2, 0)


def levels(image: Tensor) -> np.ndarray:
    """image (...,H,W) in [0,1] -> uint8, on the CPU."""
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()


def middle(length: int, scale: int) -> tuple[slice, slice, slice]:
    """The middle of `length` LR pixels: the slice that networks see, what is kept of it, HR's slice."""
    size = min(length, SIDE // scale)
    start = (length - size) // 2
    seen = slice(max(0, start - MARGIN), start + size + MARGIN)
    kept = slice((start - seen.start) * scale, (start - seen.start + size) * scale)
    return seen, kept, slice(start * scale, (start + size) * scale)


class Watch:
    """The middles of the first `count` validation images.

    Reads them once, and raises ValueError as data does.
    """

    def __init__(self, validation: PairedDataset, count: int):
        self.parts = {}
        for i in range(min(count, len(validation))):
            lr, hr = validation[i]
            (rows, own_rows, hr_rows), (columns, own_columns, hr_columns) = (
                middle(length, validation.scale) for length in lr.shape[1:]
            )
            lr, hr = lr[None, :, rows, columns].clone(), hr[None, :, hr_rows, hr_columns].clone()
            self.parts[validation.names[i].replace("/", "_")] = lr, hr, (..., own_rows, own_columns)

    @torch.no_grad()
    def record(self, learners: Iterable[Learner], epoch: int) -> bytes:
        """The file of this epoch."""
        found = {}
        for name, (lr, hr, own) in self.parts.items():
            found[f"{name}/hr"] = pixels(hr[0])
            for learner in learners:
                on_device = hr.to(learner.device)
                sr = TiledUpscaler(learner.result, 1 << 30)(lr.to(learner.device))[own].float().clamp_(-1, 1)
                found[f"{name}/{learner.name}/sr"] = pixels(sr[0])
                if learner.loss.weighting is not None:
                    k = learner.loss.log_scalars(None, epoch)["k"]
                    weights = weights_of(learner.loss.weighting, on_device, sr, k)
                    found[f"{name}/{learner.name}/weights"] = levels(weights[0].mean(dim=0))
                    found[f"{name}/{learner.name}/k"] = np.array(k)
        file = io.BytesIO()
        np.savez_compressed(file, **found)
        return file.getvalue()
