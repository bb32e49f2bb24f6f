"""The pixel losses against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from losses.pixel import PixelLoss, absolute_error, squared_error
from losses.target import Target


@pytest.mark.parametrize("error, reference", [(absolute_error, F.l1_loss), (squared_error, F.mse_loss)])
def test_value_and_gradient_against_torch(error, reference):
    sr, hr = torch.rand(2, 2, 3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    sr.requires_grad_()
    ours, theirs = PixelLoss(error)(sr, Target(hr), epoch=3), reference(sr, hr)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, sr), torch.autograd.grad(theirs, sr))


@pytest.mark.parametrize("error", [absolute_error, squared_error])
def test_zero_and_finite_where_the_images_are_equal(error):
    hr = torch.zeros(1, 3, 4, 4)
    sr = hr.clone().requires_grad_()
    loss = PixelLoss(error)(sr, Target(hr), epoch=0)
    loss.backward()
    assert loss == 0 and not sr.grad.any()


def test_nothing_else_learns():
    loss = PixelLoss(absolute_error)
    assert loss.helper is None and loss.helper_loss(torch.zeros(1), Target(torch.zeros(1)), 0) is None
    assert not list(loss.parameters()) and loss.log_scalars(None, 0) == {}
