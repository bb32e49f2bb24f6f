"""Any single-image network that spandrel reads, for --model spandrel:FILE.

spandrel (github.com/chaiNNer-org/spandrel) finds the architecture and its sizes from a state dict's names and shapes:
a checkpoint alone is enough to build the network again.
"""

import copy
import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PREFIX = "spandrel:"  # of a model's name
MEAN_SHIFTS = ("sub_mean.", "add_mean.")  # constants that RCAN keeps among its parameters


class SpandrelNetwork(nn.Module):
    """lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped.

    spandrel's network inside works in [0,1]. Without features, it cannot be trained with UDL.

    Args:
        weights: a state dict in a layout that spandrel reads, or this class's own.
        scale: the scale that the network must have; None: any.

    Raises ValueError if spandrel is not installed or does not know the network, or if the network does not map one RGB
    image to another.
    """

    receptive_radius = None  # unknown: the network runs on whole images

    def __init__(self, weights: Mapping[str, Tensor], scale: int | None = None) -> None:
        super().__init__()
        descriptor = describe(weights)
        if scale not in (None, descriptor.scale):
            raise ValueError(f"is x{descriptor.scale}, not x{scale}; use --scale {descriptor.scale}")
        self.scale = descriptor.scale
        self.architecture = descriptor.architecture.name
        self.spandrel = descriptor.model.train()
        self._call, self._sizes = descriptor._call_fn, descriptor.size_requirements
        for name, parameter in self.spandrel.named_parameters():
            parameter.requires_grad_(not name.startswith(MEAN_SHIFTS))

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[2:]
        right, below = self._sizes.get_padding(width, height)
        lr = F.pad(lr, (0, min(right, width - 1), 0, min(below, height - 1)), "reflect")
        lr = F.pad(lr, (0, right - min(right, width - 1), 0, below - min(below, height - 1)), "replicate")
        sr = self._call(self.spandrel, (lr + 1) / 2)
        return 2 * sr[:, :, : height * self.scale, : width * self.scale] - 1

    def freeze_unused(self) -> None:
        """Freeze parameters without a gradient, such as SPAN's copies of convolutions for inference.

        Raises ValueError if no parameter has one.
        """
        lr = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        probe = copy.deepcopy(self)  # the forward pass changes BatchNorm's statistics
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            sr = probe(lr)
            if not sr.requires_grad:
                raise ValueError(f"spandrel's {self.architecture} gives no gradients; it cannot be trained")
            sr.mean().backward()
        for parameter, probed in zip(self.parameters(), probe.parameters()):
            parameter.requires_grad_(probed.grad is not None)

    def forward_with_features(self, lr: Tensor) -> tuple[Tensor, None]:
        """sr, and None in place of features."""
        return self(lr), None


def describe(weights: Mapping[str, Tensor]):
    """Load a state dict as a spandrel.ImageModelDescriptor. Raises ValueError as SpandrelNetwork does."""
    try:
        import spandrel
    except ImportError:
        raise ValueError("needs spandrel, which is not installed; pip install spandrel") from None
    weights = {name.removeprefix("spandrel."): value for name, value in weights.items()}
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's deprecations, from spandrel's networks
            found = spandrel.ModelLoader().load_from_state_dict(spandrel.canonicalize_state_dict(weights))
    except spandrel.UnsupportedModelError:
        names = ", ".join(list(weights)[:3]) or "nothing"
        raise ValueError(f"spandrel does not know the network (its first entries: {names})") from None
    except Exception as error:  # architectures raise many kinds for missing or odd entries
        raise ValueError(f"spandrel cannot load it ({' '.join(str(error).split())[:160]})") from None
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose == "FaceSR":
        raise ValueError(f"holds spandrel's {found.architecture.name}, which does not upscale single images")
    if (found.input_channels, found.output_channels) != (3, 3):
        channels = f"{found.input_channels} and {found.output_channels}"
        raise ValueError(f"takes and gives {channels} channels; expected RGB, 3 and 3")
    return found
