"""The uncertainty head of UDL, which predicts how uncertain each pixel of sr is.

Ning et al., "Uncertainty-Driven Loss for Single Image Super-Resolution", NeurIPS 2021. Parameter names are those of the
`u_estimator` in the TLW authors' UHAT.
"""

from torch import Tensor, nn

# Output channels (None: the images'), the last ELU's alpha and an offset, in the code of UDL's and of TLW's authors.
HEADS = {"authors": (None, 1.0, 0.0), "tlw": (1, 0.1, 0.1)}


class UncertaintyHead(nn.Sequential):
    """Features (B,in_channels,h,w) -> s = log-variance (B,3 or 1,scale*h,scale*w).

    Args:
        scale: HR size over the features' size, the network's scale / feature_scale.
        head: "authors": s > -1, one map for each of `colours` channels; "tlw": s > 0, one map for all. Else ValueError.
    """

    def __init__(self, in_channels: int, scale: int, head: str = "authors", colours: int = 3) -> None:
        if head not in HEADS:
            raise ValueError(f"head={head!r} is not known; use {' or '.join(HEADS)}")
        out_channels, alpha, offset = HEADS[head]
        super().__init__(
            nn.Upsample(scale_factor=scale, mode="nearest"),
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.ELU(),
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.ELU(),
            nn.Conv2d(in_channels, out_channels or colours, 3, padding=1),
            nn.ELU(alpha),
        )
        self.offset = offset

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) + self.offset
