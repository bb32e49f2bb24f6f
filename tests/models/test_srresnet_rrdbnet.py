"""RRDBNet against spandrel's, SRResNet against its layout and a direct transcription, and what the two start as."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.rrdbnet import RRDBNet
from models.srresnet import SRResNet

SMALL = dict(channels=8, blocks=2)


def moved(net: torch.nn.Module) -> torch.nn.Module:
    """The network with every parameter moved off its initial value, so that each one matters."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


@pytest.mark.parametrize("scale, size", [(2, (9, 7)), (4, (5, 12)), (4, (1, 1))])
@torch.no_grad()
def test_rrdbnet_equals_spandrel(scale, size):
    """Without mean shift the network is one function, whatever the range of its images."""
    architectures = pytest.importorskip("spandrel.architectures.ESRGAN")
    torch.manual_seed(scale)
    ours = moved(RRDBNet(scale, channels=8, blocks=3))
    theirs = architectures.ESRGANArch().load(ours.state_dict())
    assert theirs.scale == scale
    lr = torch.rand(2, 3, *size) * 2 - 1
    torch.testing.assert_close(ours(lr), theirs.model.eval()(lr), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rrdbnet_x3_equals_spandrel():
    """spandrel reads x2 and x4 from a file's names; its x3 network is built by hand and filled in order."""
    architectures = pytest.importorskip("spandrel.architectures.ESRGAN")
    torch.manual_seed(0)
    ours = moved(RRDBNet(3, channels=8, blocks=2))
    theirs = architectures.ESRGAN(num_filters=8, num_blocks=2, scale=3).eval()
    values = list(ours.parameters())
    assert [v.shape for v in theirs.parameters()] == [v.shape for v in values]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    lr = torch.rand(1, 3, 6, 5) * 2 - 1
    torch.testing.assert_close(ours(lr), theirs(lr), rtol=1e-5, atol=1e-5)


def test_gradients_equal_spandrel():
    architectures = pytest.importorskip("spandrel.architectures.ESRGAN")
    torch.manual_seed(0)
    ours = moved(RRDBNet(2, channels=8, blocks=1))
    theirs = architectures.ESRGANArch().load(ours.state_dict()).model.eval().requires_grad_()
    lr = torch.rand(1, 3, 6, 6) * 2 - 1
    gradients = [torch.autograd.grad(net(lr).square().mean(), list(net.parameters())) for net in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def layout(net: torch.nn.Module) -> Counter:
    """How many parameters each name has, the running number of a block left out."""
    return Counter(".".join(part for part in name.split(".") if not part.isdigit()) for name in net.state_dict())


def test_names_are_basicsrs():
    with torch.device("meta"):
        srresnet, rrdbnet = SRResNet(4), RRDBNet(4)
    convs = ["conv_first", "upconv1", "upconv2", "conv_hr", "conv_last"]
    body = [f"body.{conv}" for conv in ("conv1", "conv2")]
    ends = ("weight", "bias")
    assert layout(srresnet) == {f"{c}.{e}": 1 for c in convs for e in ends} | {
        f"{c}.{e}": 16 for c in body for e in ends
    }
    convs = ["conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    body = [f"body.rdb{i}.conv{j}" for i in (1, 2, 3) for j in (1, 2, 3, 4, 5)]
    assert layout(rrdbnet) == {f"{c}.{e}": 1 for c in convs for e in ends} | {
        f"{c}.{e}": 23 for c in body for e in ends
    }
    assert rrdbnet.state_dict()["body.22.rdb3.conv5.weight"].shape == (64, 192, 3, 3)


def direct_srresnet(state: dict[str, Tensor], lr: Tensor, scale: int, blocks: int, skip: bool) -> Tensor:
    """The network written down layer by layer."""

    def conv(name, x):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    x = leaky(conv("conv_first", lr))
    for i in range(blocks):
        x = x + conv(f"body.{i}.conv2", conv(f"body.{i}.conv1", x).clamp(min=0))
    for name, factor in {2: [("upconv1", 2)], 3: [("upconv1", 3)], 4: [("upconv1", 2), ("upconv2", 2)]}[scale]:
        x = leaky(F.pixel_shuffle(conv(name, x), factor))
    base = F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    return conv("conv_last", leaky(conv("conv_hr", x))) + (base if skip else 0)


@pytest.mark.parametrize("scale, skip", [(2, True), (3, True), (4, True), (4, False)])
@torch.no_grad()
def test_srresnet_equals_its_transcription(scale, skip):
    """BasicSR's MSRResNet, and that of the Dual Perceptual loss's authors, in which the last line is commented out."""
    torch.manual_seed(scale)
    net, lr = moved(SRResNet(scale, bilinear_skip=skip, **SMALL)), torch.rand(2, 3, 7, 9) * 2 - 1
    expected = direct_srresnet(net.state_dict(), lr, scale, 2, skip)
    torch.testing.assert_close(net(lr), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_srresnet_starts_near_bilinear_upsampling(scale):
    torch.manual_seed(0)
    lr = torch.rand(1, 3, 12, 10) * 2 - 1
    bilinear = F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    difference = (SRResNet(scale)(lr) - bilinear).abs().max()
    assert 0 < difference < 0.01


def test_small_initialisation():
    """Kaiming's deviation sqrt(2 / fan-in), times 0.1, no bias: in RRDBNet's dense blocks, everywhere in SRResNet."""
    torch.manual_seed(0)
    rrdbnet, srresnet = RRDBNet(4, blocks=1), SRResNet(4, blocks=1)
    for conv in (
        rrdbnet.body[0]["rdb1"]["conv2"],
        rrdbnet.body[0]["rdb3"]["conv5"],
        srresnet.body[0].conv1,
        srresnet.upconv2,
    ):
        assert conv.weight.std().item() == pytest.approx(0.1 * (2 / (conv.in_channels * 9)) ** 0.5, rel=0.05)
        assert not conv.bias.any()
    assert rrdbnet.conv_body.bias.any()


@pytest.mark.parametrize(
    "build", [lambda: SRResNet(2, channels=3, blocks=1), lambda: RRDBNet(2, channels=3, blocks=1, growth=2)]
)
def test_gradient_of_the_input(build):
    """Away from the kinks of the ReLUs; an in-place activation in the wrong place would show here."""
    torch.manual_seed(1)
    net = moved(build()).double()
    lr = (torch.rand(1, 3, 3, 2, dtype=torch.float64) * 2 - 1).requires_grad_()
    assert torch.autograd.gradcheck(net, lr)
