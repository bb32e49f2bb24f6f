"""Sub-pixel upsampling (Shi et al., CVPR 2016, arXiv 1609.05158) and reflection padding to a multiple."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Most published networks upsample by x4 in two steps of x2.
STEPS: dict[int, tuple[int, ...]] = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad (B,C,h,w) at the bottom and the right by reflection to multiples of `multiple`.

    Unlike F.pad's "reflect" it also pads by more than the image's size, by repeated reflection.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        if size % multiple:
            period = max(2 * (size - 1), 1)
            i = torch.arange(size + -size % multiple, device=x.device) % period
            x = x.index_select(dim, torch.minimum(i, period - i))
    return x


def conv_pixel_shuffle(conv: nn.Conv2d, x: Tensor, factor: int) -> Tensor:
    """PixelShuffle(factor)(conv(x)): (B,C,h,w) -> (B,C',factor*h,factor*w).

    conv has a bias, one group, no dilation, and pads with zeros. For x in channels_last its output channels are first
    sorted as they lie in the larger image: then the shuffle and its gradient copy whole pixels, not single values.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return F.pixel_shuffle(conv(x), factor)
    assert conv.bias is not None
    weight, bias = (p.unflatten(0, (-1, factor**2)).transpose(0, 1).flatten(0, 1) for p in (conv.weight, conv.bias))
    y = F.conv2d(x, weight, bias, conv.stride, conv.padding).permute(0, 2, 3, 1)
    batch, height, width, channels = y.shape
    channels //= factor**2
    y = y.unflatten(3, (factor, factor, channels)).transpose(2, 3)
    return y.reshape(batch, height * factor, width * factor, channels).permute(0, 3, 1, 2)


class PixelShuffleUpsampler(nn.Sequential):
    """(B,C,h,w) -> (B,C,s*h,s*w), s the product of `factors`: conv3x3 and PixelShuffle for each factor."""

    def __init__(self, channels: int, factors: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [nn.Conv2d(channels, factor**2 * channels, 3, padding=1), nn.PixelShuffle(factor)]
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = [*self.children()]
        for conv, shuffle in zip(layers[::2], layers[1::2]):
            x = conv_pixel_shuffle(conv, x, shuffle.upscale_factor)
        return x
