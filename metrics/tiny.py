"""`tiny`, the judge that needs no download: a small network in the form of LPIPS.

It has AlexNet's strides, so that its features lie on the same grids as those of its teacher LPIPS-alex, but fewer
parameters. `reproduce/train_judge.py` distils it from LPIPS-alex's distances, maps and gradients: Hinton et al., arXiv
1503.02531; Czarnecki et al., "Sobolev Training for Neural Networks", NeurIPS 2017.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .deep_features import DeepDistance
from .errors import one_line
from .ops.strided import StridedConv

TINY_FILE = Path(__file__).with_name("tiny.safetensors")
WIDTHS = (64, 96, 112, 96, 96)


class TinyFeatures(nn.Module):
    """Images (N,3,H,W) in [-1,1] -> features of five depths, about (N,64,H/4,W/4) to (N,96,H/16,W/16).

    0.45 M parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third, fourth, fifth = WIDTHS
        self.conv1 = StridedConv(3, first, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.conv4 = nn.Conv2d(third, fourth, 3, padding=1)
        self.conv5 = nn.Conv2d(fourth, fifth, 3, padding=1)

    def depths(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the features of every depth, before and after their ReLU."""
        x = images
        for conv, pooled in zip(self.children(), (False, True, True, False, False)):
            raw = conv(F.max_pool2d(x, 3, 2) if pooled else x)
            x = F.relu(raw)
            yield raw, x

    def forward(self, images: Tensor) -> Iterator[Tensor]:
        return (x for _, x in self.depths(images))


class Tiny(DeepDistance):
    """The judge `tiny`; forward(a, b), (B,3,H,W) RGB in [-1,1] -> (B,), close to LPIPS-alex's distances.

    path: its weights; None: random ones. Raises ValueError if the file is missing, damaged or holds other weights.
    """

    def __init__(self, path: Path | None = TINY_FILE, **options) -> None:
        super().__init__(TinyFeatures(), map(torch.ones, WIDTHS), "tiny", min_size=31, pixel_bytes=(170, 64), **options)
        if path is not None:
            try:
                state = {name: weight.float() for name, weight in load_file(path).items()}
                self.load_state_dict(state)
                if not all(weight.isfinite().all() for weight in state.values()):
                    raise RuntimeError("values that are not finite")
            except (OSError, SafetensorError, RuntimeError) as error:
                raise ValueError(
                    f"{path}: no weights of the judge tiny ({one_line(error)}); restore the file, or make it again "
                    "with python -m reproduce.train_judge"
                ) from None
