"""spandrel's networks as ours: the same images in [-1,1], any size, gradients, and a state that builds them again."""

import copy

import pytest
import torch

from models import build_network, model_id
from models.spandrel_network import SpandrelNetwork

spandrel = pytest.importorskip("spandrel")


def esrgan(scale: int = 2):
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=8, num_blocks=1, scale=scale)


def span():
    from spandrel.architectures.SPAN import SPAN

    return SPAN(num_in_ch=3, num_out_ch=3, upscale=2, feature_channels=8)


def rcan():
    from spandrel.architectures.RCAN import RCAN

    return RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=8, reduction=2)


def swinir():
    from spandrel.architectures.SwinIR import SwinIR

    small = {"embed_dim": 12, "depths": (2,), "num_heads": (2,), "window_size": 8, "img_size": 16}
    return SwinIR(upscale=2, upsampler="pixelshuffle", **small)


def real_cugan():
    from spandrel.architectures.RealCUGAN import UpCunet2x

    return UpCunet2x()


ALL = [esrgan, span, rcan, swinir, real_cugan]


@pytest.mark.parametrize("make", ALL)
@torch.no_grad()
def test_the_images_are_spandrel_s(make):
    torch.manual_seed(0)
    weights = make().state_dict()
    net = SpandrelNetwork(weights, 2).eval()
    theirs = spandrel.ModelLoader().load_from_state_dict(weights)
    for size in ((24, 32), (17, 23), (5, 3)):
        lr = torch.rand(1, 3, *size)
        sr = net(2 * lr - 1)
        assert sr.shape == (1, 3, 2 * size[0], 2 * size[1])
        assert torch.allclose(((sr + 1) / 2).clamp(0, 1), theirs(lr.clone()), atol=1e-5)


@pytest.mark.parametrize("make", ALL)
@torch.no_grad()
def test_a_state_builds_it_again(make):
    torch.manual_seed(0)
    net = SpandrelNetwork(make().state_dict()).eval()
    again = build_network("spandrel:moved.pth", 2, None, net.state_dict()).eval()
    lr = torch.rand(1, 3, 16, 16) * 2 - 1
    assert list(again.state_dict()) == list(net.state_dict()) and torch.equal(again(lr), net(lr))
    assert not again.forward_with_features(lr)[1]


@pytest.mark.parametrize("make", [esrgan, span, rcan])
def test_what_gets_no_gradient_is_frozen(make):
    torch.manual_seed(0)
    net = SpandrelNetwork(make().state_dict())
    before, stream = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    net.freeze_unused()
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    net(torch.rand(2, 3, 16, 16)).mean().backward()
    learning = {name for name, p in net.named_parameters() if p.requires_grad}
    assert learning == {name for name, p in net.named_parameters() if p.grad is not None}
    constants = {name for name, _ in net.named_parameters() if "_mean." in name or "eval_conv" in name}
    assert not learning & constants and bool(constants) == (make is not esrgan) and len(learning) > 5


def grey():
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(in_nc=1, out_nc=1, num_filters=8, num_blocks=1, scale=2).state_dict()


def damaged():
    return {name: x for name, x in esrgan().state_dict().items() if name != "model.1.sub.0.RDB2.conv1.0.bias"}


REFUSED = {
    "another scale": (lambda: esrgan(4).state_dict(), "is x4, not x2; use --scale 4"),
    "unknown": (
        lambda: {"a.weight": torch.zeros(1)},
        "spandrel does not know the network (its first entries: a.weight)",
    ),
    "nothing": (dict, "its first entries: nothing"),
    "one channel": (grey, "takes and gives 1 and 1 channels; expected RGB, 3 and 3"),
    "an entry missing": (damaged, "spandrel cannot load it ("),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(make, said):
    with pytest.raises(ValueError, match="--model spandrel:x.pth: ") as error:
        build_network("spandrel:x.pth", 2, None, make())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_options_are_refused():
    with pytest.raises(ValueError, match="the file decides the network; leave them out"):
        build_network("spandrel:x.pth", 2, {"blocks": 2}, esrgan().state_dict())


def test_without_spandrel(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    with pytest.raises(ValueError, match="needs spandrel, which is not installed; pip install spandrel"):
        build_network("spandrel:x.pth", 2, None, {})


def test_the_identity_does_not_hold_the_file():
    assert model_id("spandrel:/a/x.pth", 2) == model_id("spandrel:/b/y.pth", 2) != model_id("spandrel:/a/x.pth", 4)
