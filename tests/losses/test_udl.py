"""UDL: both stages against transcriptions of their equations, the change between them, and what it leaves alone."""

import copy
import math

import pytest
import torch
from torch import nn

from losses import UDL, Target
from losses.uncertainty import UncertaintyHead
from models import SR_MODELS


def parts(head="authors", **options):
    torch.manual_seed(0)
    net = SR_MODELS["EDSR"](scale=2, channels=8, blocks=1)
    return net, UDL(net, UncertaintyHead(8, 2, head), second=3, **options)


def batch():
    random = torch.Generator().manual_seed(1)
    lr, hr = (torch.rand(2, 3, size, size, generator=random) * 2 - 1 for size in (5, 10))
    return lr, Target(hr, lr=lr)


class Fixed(nn.Module):
    """A head that says s, whatever it sees."""

    def __init__(self, s):
        super().__init__()
        self.s = nn.Parameter(s)

    def forward(self, features):
        return self.s


@pytest.mark.parametrize("channels", [3, 1])
def test_stage_1_is_the_authors_in_their_unit(channels):
    """Element by element on images in [0,255]: mean |sr e^-s - hr e^-s| + 2 mean s, in units of 127.5 levels."""
    random = torch.Generator().manual_seed(2)
    sr, hr = torch.rand(2, 2, 3, 4, 5, generator=random, dtype=torch.float64) * 2 - 1
    s = torch.randn(2, channels, 4, 5, generator=random, dtype=torch.float64)
    sr.requires_grad_()
    loss = UDL(nn.Identity(), Fixed(s))
    ours = loss(sr, Target(hr), 0, torch.zeros(1))
    total = 0
    for b in range(2):
        for c in range(3):
            for y in range(4):
                for x in range(5):
                    factor = math.exp(-s[b, c % channels, y, x])
                    grey = (sr[b, c, y, x] + 1) * 127.5, (hr[b, c, y, x] + 1) * 127.5
                    total = total + (grey[0] * factor - grey[1] * factor).abs() / 120
    expected = (total + 2 * s.mean()) / 127.5
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, sr, retain_graph=True)[0] for x in (ours, expected)))
    (by_s,) = torch.autograd.grad(ours, loss.head.s)
    torch.testing.assert_close(by_s.sum(), (2 - total.detach()) / 127.5)


def test_stage_1_is_smallest_where_s_is_the_logarithm_of_half_the_error_in_levels():
    sr, hr = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)
    loss = UDL(nn.Identity(), Fixed(torch.full((1, 3, 2, 2), math.log(0.1 * 127.5 / 2))))
    (gradient,) = torch.autograd.grad(loss(sr, Target(hr), 0, sr), loss.head.s)
    assert gradient.abs().max() < 1e-8


def test_stage_1_teaches_the_network_and_the_head():
    net, loss = parts()
    lr, target = batch()
    sr, features = net.forward_with_features(lr)
    loss(sr, target, 0, features).backward()
    assert all(p.grad.any() for p in loss.head.parameters())
    assert all(p.grad.any() for p in net.parameters())
    assert {id(p) for p in loss.joint_parameters()} == {id(p) for p in loss.head.parameters()}
    # the network learns from the head too, not from its own error alone
    both = net.head[0].weight.grad.clone()
    net.zero_grad()
    sr, features = net.forward_with_features(lr)
    loss(sr, target, 0, features.detach()).backward()
    assert not torch.allclose(both, net.head[0].weight.grad)


@pytest.mark.parametrize("head, channels", [("authors", 3), ("tlw", 1)])
@pytest.mark.parametrize("plus_one", [True, False])
def test_stage_2(head, channels, plus_one):
    net, loss = parts(head, plus_one=plus_one)
    loss.begin_epoch(net, 3)
    frozen = copy.deepcopy(net), copy.deepcopy(loss.head)
    with torch.no_grad():  # the network goes on learning
        for p in net.parameters():
            p.mul_(1.5)
    lr, target = batch()
    sr = net(lr)
    ours = loss(sr, target, 3.5)
    with torch.no_grad():
        s = frozen[1](frozen[0].forward_with_features(lr)[1])
    assert s.shape[1] == channels
    total = 0
    for b in range(2):
        for c in range(3):
            plane = s[b, c % channels]
            total = total + (plane - plane.min() + plus_one).mul((sr[b, c] - target.hr[b, c]).abs()).mean() / 6
    torch.testing.assert_close(ours, total)
    torch.testing.assert_close(*(torch.autograd.grad(x, sr, retain_graph=True)[0] for x in (ours, total)))
    ours.backward()
    assert all(p.grad is None for p in loss.parameters())


def test_the_minimum_of_the_batch():
    """As TLW's code has it: u - torch.min(u), one map for all channels, no 1 added."""
    net, loss = parts("tlw", plus_one=False, minimum="batch")
    loss.begin_epoch(net, 3)
    lr, target = batch()
    sr = net(lr)
    with torch.no_grad():
        u = loss.head(net.forward_features(lr))
    weight = u - min(u.flatten().tolist())
    assert weight[0].min() != weight[1].min()  # one of them is not 0
    expected = torch.mean(torch.abs(sr - target.hr) * weight)
    ours = loss(sr, target, 3)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, sr, retain_graph=True)[0] for x in (ours, expected)))


def test_where_the_second_stage_restarts():
    assert parts()[1].restart_epoch is None and parts(restart=True)[1].restart_epoch == 3


def test_with_s_constant_stage_2_is_l1():
    sr, hr = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    net = SR_MODELS["EDSR"](scale=2, channels=8, blocks=1)
    for plus_one, expected in ((True, (sr - hr).abs().mean()), (False, torch.tensor(0.0))):
        loss = UDL(net, Fixed(torch.full((2, 3, 8, 8), 0.7)), second=1, plus_one=plus_one)
        loss.begin_epoch(net, 1)
        torch.testing.assert_close(loss(sr, Target(hr, lr=torch.zeros(2, 3, 4, 4)), 1), expected)


def test_the_stage_changes_once_at_its_epoch():
    net, loss = parts()
    before = copy.deepcopy(loss.state_dict())
    for epoch in (0, 1, 2, 2.5):
        loss.begin_epoch(net, epoch)
    assert loss.stage == 1 and all(torch.equal(x, before[name]) for name, x in loss.state_dict().items())
    with torch.no_grad():
        net.head[0].weight.add_(1)
        loss.head[1].weight.add_(1)
    loss.begin_epoch(net, 3)
    assert loss.stage == 2
    assert torch.equal(loss.frozen["net"].head[0].weight, net.head[0].weight)
    assert torch.equal(loss.frozen["head"][1].weight, loss.head[1].weight)
    taken = copy.deepcopy(loss.state_dict())
    with torch.no_grad():
        net.head[0].weight.add_(1)
    for epoch in (3, 3.5, 4):
        loss.begin_epoch(net, epoch)
    assert all(torch.equal(x, taken[name]) for name, x in loss.state_dict().items())
    assert loss.frozen["net"].head[0].weight.data_ptr() != net.head[0].weight.data_ptr()


@pytest.mark.parametrize("epoch", [3.5, 4, 40])
def test_no_second_stage_without_a_first(epoch):
    net, loss = parts()
    with pytest.raises(ValueError, match=f"epoch {epoch:g} is in UDL's second stage"):
        loss.begin_epoch(net, epoch)


def test_the_state_has_the_same_names_in_both_stages_and_brings_the_stage_back():
    net, loss = parts()
    first = loss.state_dict().keys()
    loss.begin_epoch(net, 3)
    state = loss.state_dict()
    assert first == state.keys() and all(isinstance(value, torch.Tensor) for value in state.values())
    torch.manual_seed(5)
    other = UDL(SR_MODELS["EDSR"](scale=2, channels=8, blocks=1), UncertaintyHead(8, 2), second=3)
    other.load_state_dict(state)
    lr, target = batch()
    sr = net(lr).detach()
    assert other.stage == 2 and torch.equal(other(sr, target, 4), loss(sr, target, 4))


def test_the_frozen_network_never_drops_paths():
    torch.manual_seed(0)
    net = SR_MODELS["HAT"](
        scale=2, embed=12, depths=[2], heads=[2], window=4, channels=8, squeeze_factor=6, drop_path=0.9
    )
    loss = UDL(net, UncertaintyHead(8, 2), second=1).train()
    loss.begin_epoch(net, 1)
    assert loss.head.training and not any(module.training for module in loss.frozen.modules())
    lr = torch.rand(1, 3, 8, 8)
    assert torch.equal(loss.weight(lr), loss.weight(lr))
