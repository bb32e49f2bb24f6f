"""Pictures over the epochs: crops and weight maps of the same images at each validation.

    RUN/watch/0007.npz      of epoch 7 (step_7.npz: of step 7); uint8 arrays, 0 to 255 for 0 to 1:
        IMAGE/hr            (h,w,3), the middle of an image
        IMAGE/bicubic       (h,w,3), its LR upscaled by the protocol's bicubic
        IMAGE/LOSS/sr       (h,w,3), its LR upscaled by that loss's network
        IMAGE/LOSS/weights  (h,w), the loss's weights averaged over channels, if it has a weighting network
    and, float64: IMAGE/LOSS/k, the weights' mean in that epoch.

About 100 KiB per image and loss. The same weights and epoch give the same file.
"""

import io
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from data import PairedDataset
from models.ops.tiled import TiledUpscaler

from .figures import weights_of
from .learner import Learner

SIDE = 192  # HR pixels of the crop, at most
MARGIN = 16  # LR pixels around it that the SR networks get too
FOLDER = "watch"


def pixels(image: Tensor) -> np.ndarray:
    """Convert image (3 or 1,H,W) in [-1,1] to uint8 (H,W,3)."""
    return levels(image / 2 + 0.5).repeat(3 // len(image), axis=0).transpose(1, 2, 0)


def levels(image: Tensor) -> np.ndarray:
    """Convert image (...,H,W) in [0,1] to uint8 on the CPU."""
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()


def middle(length: int, scale: int) -> tuple[slice, slice, slice]:
    """Slices of the middle of `length` LR pixels: the networks' input, their output's crop, HR's crop."""
    size = min(length, SIDE // scale)
    start = (length - size) // 2
    seen = slice(max(0, start - MARGIN), start + size + MARGIN)
    kept = slice((start - seen.start) * scale, (start - seen.start + size) * scale)
    return seen, kept, slice(start * scale, (start + size) * scale)


class Watch:
    """The middles of the first `count` validation images, read once. Raises ImageReadError.

    bicubic: the upscaler to compare with.
    """

    def __init__(self, validation: PairedDataset, count: int, bicubic: nn.Module):
        self.parts, self.always = {}, {}  # the networks' inputs; the arrays that are the same in each file
        for i in range(min(count, len(validation))):
            lr, hr = validation[i]
            (rows, own_rows, hr_rows), (columns, own_columns, hr_columns) = (
                middle(length, validation.scale) for length in lr.shape[1:]
            )
            lr, hr = lr[None, :, rows, columns].clone(), hr[None, :, hr_rows, hr_columns].clone()
            name = validation.names[i].replace("/", "_")
            self.parts[name] = lr, hr, (..., own_rows, own_columns)
            self.always[f"{name}/hr"] = pixels(hr[0])
            self.always[f"{name}/bicubic"] = pixels(self.upscaled(name, bicubic, torch.device("cpu"))[0])

    @torch.no_grad()
    def upscaled(self, name: str, net: nn.Module, device: torch.device) -> Tensor:
        """The crop of an image, upscaled by net: (1,3,h,w) in [-1,1]."""
        lr, _, own = self.parts[name]
        return TiledUpscaler(net, 1 << 30)(lr.to(device))[own].float().clamp_(-1, 1)

    @torch.no_grad()
    def record(self, learners: Iterable[Learner], epoch: int) -> dict[str, np.ndarray]:
        """The arrays of this epoch's file, by key."""
        found = {**self.always}
        for name, (_, hr, _) in self.parts.items():
            for learner in learners:
                sr = self.upscaled(name, learner.result, learner.device)
                found[f"{name}/{learner.name}/sr"] = pixels(sr[0])
                if learner.loss.weighting is not None:
                    k = learner.loss.log_scalars(None, epoch)["k"]
                    weights = weights_of(learner.loss.weighting, hr.to(learner.device), sr, k)
                    found[f"{name}/{learner.name}/weights"] = levels(weights[0].mean(dim=0))
                    found[f"{name}/{learner.name}/k"] = np.array(k)
        return found


def serialize(found: dict[str, np.ndarray]) -> bytes:
    """The content of an epoch's file."""
    file = io.BytesIO()
    np.savez_compressed(file, **found)
    return file.getvalue()
