"""The self-ensemble: against rotations, what it leaves alone, and how often it asks."""

import pytest
import torch

from models import SR_MODELS
from models.bicubic import MatlabBicubic
from models.ops.ensemble import SelfEnsemble
from models.ops.tiled import TiledUpscaler


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return SR_MODELS["EDSR"](scale=2, blocks=1, channels=8).eval()


@pytest.fixture(scope="module")
def lr():
    return torch.rand(2, 3, 11, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_against_rotations_and_a_mirror(net, lr):
    """The same eight views, as four rotations of the image and of its mirror image."""
    views = []
    for mirrored in (False, True):
        for turns in range(4):
            view = torch.rot90(lr.flip(-1) if mirrored else lr, turns, (-2, -1))
            sr = torch.rot90(net(view), -turns, (-2, -1))
            views.append(sr.flip(-1) if mirrored else sr)
    expected = torch.stack(views).mean(dim=0)
    found = SelfEnsemble(net)(lr)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - net(lr)).abs().max() > 1e-3
    torch.testing.assert_close(SelfEnsemble(TiledUpscaler(net, 1 << 16))(lr), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_treats_all_views_alike_stays_as_it_is(lr):
    bicubic = MatlabBicubic(3)
    torch.testing.assert_close(SelfEnsemble(bicubic)(lr), bicubic(lr), rtol=0, atol=1e-6)


def test_the_input_stays_and_eight_views_are_asked_for(lr):
    seen, before = [], lr.clone()

    def identity(view):
        seen.append(view.clone())
        return view

    torch.testing.assert_close(SelfEnsemble(identity)(lr), lr, rtol=0, atol=1e-6)
    assert torch.equal(lr, before) and len(seen) == 8
    distinct = {(view.shape, tuple(view.flatten().tolist())) for view in seen}
    assert len(distinct) == 8
