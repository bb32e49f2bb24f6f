"""The colour beyond an image's border, where its first convolution pads with zeros.

A first convolution that sees x - colour and pads with zeros pads the image with that colour. In [-1,1] zero is grey; in
[0,1], as BasicSR's networks take it, black; and after EDSR's and RCAN's mean shift the mean of DIV2K. A network that
pads with the colour of another toolkit can take that toolkit's weights, or give it its own, exactly.
"""

import torch
from torch import Tensor

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # RGB in [0,1]
COLOURS = {"grey": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0), "mean": DIV2K_MEAN}  # RGB in [0,1]


LUMINANCE = (0.299, 0.587, 0.114)  # of RGB, ITU-R BT.601


def padding_colour(padding: str, colours: int = 3) -> Tensor:
    """The colour of that name, (1,3,1,1) in [-1,1], or its luminance, (1,1,1,1).

    Raises ValueError for an unknown name.
    """
    if padding not in COLOURS:
        raise ValueError(f"padding={padding!r} is not known; use {', '.join(COLOURS)}")
    colour = 2 * torch.tensor(COLOURS[padding]).view(1, 3, 1, 1) - 1
    return colour if colours == 3 else (colour * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def shift_padding(weight: Tensor, bias: Tensor, old: str, new: str) -> Tensor:
    """The first convolution's bias that gives the same inside the image with padding `new`.

    weight: (C,3 or 1,k,k).

    conv(x - old) = conv(x - new) + the sum of weight * (new - old): all but the border's pixels stay as they are.
    """
    moved = padding_colour(new, weight.shape[1]) - padding_colour(old, weight.shape[1])
    return bias + (weight.double() * moved).sum((1, 2, 3)).to(bias.dtype)
