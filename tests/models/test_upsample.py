"""`conv_pixel_shuffle` against torch's own pixel shuffle, in both layouts, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.upsample import PixelShuffleUpsampler, conv_pixel_shuffle

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_is_the_pixel_shuffle_of_the_convolution(factor, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5 * factor**2, 3, padding=1).double().to(memory_format=layout)
    x = torch.randn(2, 6, 7, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    inputs = (x, conv.weight, conv.bias)
    found, expected = conv_pixel_shuffle(conv, x, factor), F.pixel_shuffle(conv(x), factor)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, inputs, slope), torch.autograd.grad(expected, inputs, slope)):
        torch.testing.assert_close(a, b)


def test_no_value_is_moved_by_itself_in_channels_last(monkeypatch):
    monkeypatch.setattr(F, "pixel_shuffle", None)
    x = torch.rand(1, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    assert PixelShuffleUpsampler(8, (2, 2))(x).shape == (1, 8, 20, 24)


def test_under_autocast_it_is_bf16():
    conv, x = nn.Conv2d(8, 32, 3, padding=1), torch.rand(1, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = conv_pixel_shuffle(conv, x, 2), F.pixel_shuffle(conv(x), 2)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
