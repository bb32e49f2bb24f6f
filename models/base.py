"""The contract of the super-resolution networks: what training, validation and tiled inference need.

A new network is one file with a subclass of SRNetwork, and its entry in SR_MODELS (models/__init__.py).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class SRNetwork(nn.Module, ABC):
    """Base class of all networks: lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped.

    With colours=1, an option that a subclass may have, images are grey: (B,1,h,w) -> (B,1,s*h,s*w).

    A subclass calls this constructor first and implements forward_features and forward_head. It takes images of any
    size. Its options are keyword arguments whose defaults are literals: configs/catalogue.py reads them from the source
    for --help, without importing torch.

    Args:
        scale: s, one of the class's `scales`; else ValueError.
        feature_channels: C of the features.
        feature_scale: their size over that of lr: 1, or s if the network enlarges its input first (VDSR).
        receptive_radius: how many pixels of lr away a pixel of sr sees, for inference in tiles; None if it sees the
            whole image, as through an average over it. Too small a number shows as seams.
        colours: channels of lr and sr, 3 or 1.
    """

    scales: tuple[int, ...] = (2, 3, 4)

    def __init__(
        self,
        scale: int,
        *,
        feature_channels: int,
        feature_scale: int = 1,
        receptive_radius: int | None = None,
        colours: int = 3,
    ) -> None:
        if scale not in self.scales:
            *numbers, last = self.scales
            known = f"{', '.join(map(str, numbers))} or {last}"
            raise ValueError(f"scale={scale} is not supported by {type(self).__name__}; use {known}")
        if colours not in (1, 3):
            raise ValueError(f"colours={colours} is neither grey nor RGB; use 1 or 3")
        super().__init__()
        self.scale, self.colours = scale, colours
        self.feature_channels, self.feature_scale = feature_channels, feature_scale
        self.receptive_radius = receptive_radius

    @abstractmethod
    def forward_features(self, lr: Tensor) -> Tensor:
        """lr (B,3,h,w) -> the features (B,C,f*h,f*w) that sr is made from, f = feature_scale."""

    @abstractmethod
    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        """lr and its features, as forward_body gives them -> sr."""

    def forward_body(self, lr: Tensor) -> Tensor:
        """The features for forward_head: those of forward_features, before cropping if lr is extended (HAT)."""
        return self.forward_features(lr)

    def forward_with_features(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """sr and forward_features(lr), in one pass: what a second head on the body needs."""
        features = self.forward_features(lr)
        return self.forward_head(lr, features), features

    def forward(self, lr: Tensor) -> Tensor:
        return self.forward_with_features(lr)[0]


@torch.no_grad()
def check_network(net: nn.Module, scale: int) -> SRNetwork:
    """Return net if it keeps the contract at this scale; raise ValueError otherwise."""
    if not isinstance(net, SRNetwork):
        raise ValueError(f"{type(net).__name__} is not a network; expected a subclass of SRNetwork, see models/base.py")
    lr, training = torch.zeros(1, net.colours, 6, 8), net.training
    net.eval()  # in train mode a network may draw random numbers
    sr, features = net.forward_with_features(lr)
    net.train(training)
    f = net.feature_scale
    for part, found, expected in (
        ("sr", sr, (1, net.colours, 6 * scale, 8 * scale)),
        ("features", features, (1, net.feature_channels, 6 * f, 8 * f)),
    ):
        if tuple(found.shape) != expected:
            raise ValueError(f"{part} of shape {tuple(found.shape)} for lr of {tuple(lr.shape)}; expected {expected}")
    return net
