"""The first convolution against nn.Conv2d: values, gradients, and gradients of gradients."""

import pytest
import torch
from torch import nn

from metrics.ops.strided import StridedConv

KINDS = [(11, 4, 2), (3, 2, 0), (7, 2, 3), (4, 4, 0)]  # kernel, stride, padding; AlexNet's is the first


@pytest.mark.parametrize("size", [(31, 44), (32, 33), (35, 38)])
@pytest.mark.parametrize("kernel, stride, padding", KINDS)
def test_it_is_the_convolution_and_its_gradient(kernel, stride, padding, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 8, kernel, stride, padding, dtype=torch.float64).requires_grad_(False)
    ours = StridedConv.of(plain)
    images = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected, found = plain(images), ours(images)
    assert torch.equal(found, expected)
    towards = torch.rand_like(expected)
    gradients = [torch.autograd.grad((x * towards).sum(), images)[0] for x in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)
    assert gradients[1].shape == images.shape


def test_its_gradient_has_a_gradient():
    conv = StridedConv.of(nn.Conv2d(3, 4, 11, 4, 2, dtype=torch.float64)).requires_grad_(False)
    images = torch.rand(1, 3, 17, 18, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: conv(x).square(), images)


def test_weights_that_are_trained_get_their_gradient():
    conv = StridedConv(3, 4, 11, 4, 2)
    conv(torch.rand(1, 3, 32, 32)).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_bfloat16_gives_images_a_gradient_of_their_own_type():
    conv = StridedConv(3, 4, 11, 4, 2).requires_grad_(False)
    gradients = []
    for enabled in (False, True):
        images = torch.linspace(-1, 1, 3 * 40 * 40).reshape(1, 3, 40, 40).requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = conv(images)
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        out.float().square().sum().backward()
        gradients.append(images.grad)
    assert gradients[1].dtype == torch.float32
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.05, atol=0.05 * gradients[0].abs().max().item())
