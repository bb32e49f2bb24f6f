"""The colour with which a network pads its input.

A first convolution that takes x - colour and pads with zeros pads the image x with that colour. For images in [-1,1]
zero is grey; in [0,1], as in BasicSR, black; after EDSR's and RCAN's mean shift, DIV2K's mean. Networks that pad with
the same colour can exchange weights between toolkits exactly.
"""

import torch
from torch import Tensor

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # RGB in [0,1]
COLOURS = {"grey": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0), "mean": DIV2K_MEAN}  # RGB in [0,1]
LUMINANCE = (0.299, 0.587, 0.114)  # of RGB, ITU-R BT.601


def padding_colour(padding: str, colours: int = 3) -> Tensor:
    """The colour named `padding`, (1,3,1,1) in [-1,1]; with colours=1 its luminance, (1,1,1,1).

    Raises ValueError for an unknown name.
    """
    if padding not in COLOURS:
        raise ValueError(f"padding={padding!r} is not known; use {', '.join(COLOURS)}")
    colour = 2 * torch.tensor(COLOURS[padding]).view(1, 3, 1, 1) - 1
    return colour if colours == 3 else (colour * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def shift_padding(weight: Tensor, bias: Tensor, old: str, new: str) -> Tensor:
    """Return a first convolution's bias (C,) for another padding; its output changes at the borders only.

    weight: (C,3 or 1,k,k). Away from the borders conv(x - old) = conv(x - new) + sum of weight * (new - old).
    """
    moved = padding_colour(new, weight.shape[1]) - padding_colour(old, weight.shape[1])
    return bias + (weight.double() * moved).sum((1, 2, 3)).to(bias.dtype)
