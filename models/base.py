"""The interface of the super-resolution networks for training, validation and tiled inference.

A new network is one file with a subclass of SRNetwork, and its entry in SR_MODELS (models/__init__.py).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class SRNetwork(nn.Module, ABC):
    """Base class of all networks: lr (B,3,h,w), RGB in [-1,1] -> sr (B,3,s*h,s*w) in [-1,1], not clamped.

    With colours=1, an option that a subclass may offer, images are grey: (B,1,h,w) -> (B,1,s*h,s*w).

    A subclass calls this constructor first, implements forward_features and forward_head, and accepts images of any
    size. Its options are keyword arguments with constants as defaults: configs/catalogue.py reads them from the source
    for --help, without importing torch.

    Args:
        scale: s, one of the class's `scales`; else ValueError.
        feature_channels: C, the number of feature channels.
        feature_scale: f, the features' size relative to lr: 1, or s if the network enlarges its input first (VDSR).
        receptive_radius: the distance in pixels of lr at which a pixel of sr still depends on lr, for inference in
            tiles (too small a radius leaves seams); None if it depends on the whole image, as through global pooling.
        colours: channels of lr and sr, 3 or 1; else ValueError.
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
        """lr (B,3,h,w) -> the features (B,C,f*h,f*w) from which forward_head makes sr."""

    @abstractmethod
    def forward_head(self, lr: Tensor, features: Tensor) -> Tensor:
        """lr and its features from forward_body -> sr.

        If f = 1, it may run in tiles: a pixel of sr must depend on nothing more than 2 pixels of lr away.
        """

    def forward_body(self, lr: Tensor) -> Tensor:
        """The features for forward_head: forward_features, not yet cropped if the network pads lr (HAT)."""
        return self.forward_features(lr)

    def forward_with_features(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """sr and forward_features(lr) in one pass, for losses with a second head on the features (UDL)."""
        features = self.forward_features(lr)
        return self.forward_head(lr, features), features

    def forward(self, lr: Tensor) -> Tensor:
        return self.forward_with_features(lr)[0]


@torch.no_grad()
def check_network(net: nn.Module, scale: int) -> SRNetwork:
    """Return net if it is an SRNetwork whose sr and features have the right shapes; else raise ValueError."""
    if not isinstance(net, SRNetwork):
        raise ValueError(f"{type(net).__name__} is not a network; expected a subclass of SRNetwork, see models/base.py")
    lr, training = torch.zeros(1, net.colours, 6, 8), net.training
    net.eval()  # a forward pass in train mode may draw random numbers
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
