"""The published configurations against their authors' losses, transcribed by hand in the authors' units.

Nobody's code is run or copied here: the formulas are written down from what the released code computes.
"""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import alexnet, squeezenet1_1

import configs
import losses
from configs import Config
from losses import LOSSES, Target
from losses.discriminator import VGGDiscriminator
from metrics.extractors import build_extractor
from models import SR_MODELS

CONFIGS = Path(__file__).parents[2] / "configs"


def published(name: str, *flags: str) -> Config:
    return configs.load(["--config", str(CONFIGS / f"{name}.yaml"), *flags])


def images(size=32, batch=2, dtype=torch.float32):
    """sr with a gradient and hr, smooth as photographs are, in [-1,1]."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, size // 8 + 1, size // 8 + 1, generator=random, dtype=dtype) * 2 - 1
    hr = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)
    sr = (hr + 0.1 * torch.randn(hr.shape, generator=random, dtype=dtype)).clamp(-1, 1)
    return sr.requires_grad_(), hr


def vgg_distance(a, b):
    """Stands for the features of VGG19: any distance per image of images in [-1,1]."""
    return (F.avg_pool2d(a, 4) - F.avg_pool2d(b, 4)).abs().mean(dim=(-3, -2, -1))


def resnet_distance(a, b):
    return 30 * (F.avg_pool2d(a, 2) - F.avg_pool2d(b, 2)).square().mean(dim=(-3, -2, -1))


# Dual Perceptual loss: 0.01 L1 on images in [0,1], (1/mu) (L_vgg / L_res as a number) L_res + L_vgg, 0.005 adversarial


def dp(sr, hr):
    vgg, resnet = vgg_distance(sr, hr).mean(), resnet_distance(sr, hr).mean()
    return (1 / 0.5) * (vgg.item() / resnet.item()) * resnet + vgg


def l1(sr, hr):
    return ((sr + 1) / 2 - (hr + 1) / 2).abs().mean()


def vanilla(discriminator, sr, hr):
    logits = discriminator(sr)
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def relativistic(discriminator, sr, hr):
    """Half of the sum: so the code has it."""
    real, fake = discriminator(hr).detach(), discriminator(sr)
    ones = torch.ones_like(real)
    as_real = F.binary_cross_entropy_with_logits(fake - real.mean(), ones)
    return (F.binary_cross_entropy_with_logits(real - fake.mean(), 0 * ones) + as_real) / 2


@pytest.mark.parametrize(
    "name, loss, adversarial",
    [("srgan_dp", "L1+DP+GAN", vanilla), ("esrgan_dp", "L1+DP+GAN", relativistic), (None, "L1+DP", None)],
)
def test_dual_perceptual(name, loss, adversarial, monkeypatch):
    monkeypatch.setattr(losses, "VGGDiscriminator", partial(VGGDiscriminator, channels=4))
    flags = ["--patch", "32", "--batchsize", "2"]
    config = published(name, *flags) if name else configs.load(flags)
    torch.manual_seed(0)
    ours = LOSSES[loss](config, nn.Identity())
    sr, hr = images()
    first, second = config.dp_extractors
    features = {first: lambda x: vgg_distance(x, hr), second: lambda x: resnet_distance(x, hr)}
    value = ours(sr, Target(hr, features=features), 0)
    expected = 0.01 * l1(sr, hr) + dp(sr, hr)
    if adversarial:
        expected = expected + 0.005 * adversarial(ours.helper[0], sr, hr)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    gradient, expected = (torch.autograd.grad(x, sr)[0] for x in (value, expected))
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


def layers_distance(net, x, places, normalised):
    """A network's mean absolute difference of features, summed over layers, written with torchvision's layers."""
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    x, outputs = [(image + 1) / 2 for image in x], []
    if normalised:
        x = [(image - mean) / std for image in x]
    for layer in net[: places[-1] + 1]:
        x = [F.relu(image) if isinstance(layer, nn.ReLU) else layer(image) for image in x]
        outputs.append((x[0] - x[1].detach()).abs().mean())
    return sum(outputs[place] for place in places)


@pytest.mark.parametrize("dynamic", [True, False])
def test_dual_perceptual_on_features(dynamic, alex_file, squeeze_file):
    """Of one network before an activation, and of the sum of another's layers, which sees images in [0,1]."""
    names = "alexnet:conv5", "squeezenet-unnormalised:fire3+fire5+fire9"
    flags = ["--dp-extractors", *names, "--dp-mu", "0.5", *([] if dynamic else ["--no-dp-dynamic"])]
    ours = LOSSES["L1+DP"](configs.load(flags), nn.Identity())
    sr, hr = images(size=64)
    extractors = {name: build_extractor(name, (alex_file, squeeze_file)) for name in names}
    value = ours(sr, Target.judged_by(None, hr, extractors=extractors), 0)
    nets = alexnet().features, squeezenet1_1().features
    for net, file in zip(nets, (alex_file, squeeze_file)):
        net.load_state_dict(torch.load(file, weights_only=True))
    first = layers_distance(nets[0], (sr, hr), [10], True)
    second = layers_distance(nets[1], (sr, hr), [4, 7, 12], False)
    weight = (1 / 0.5) * first.item() / second.item() if dynamic else 1
    expected = 0.01 * l1(sr, hr) + first + weight * second
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    gradient, expected = (torch.autograd.grad(x, sr)[0] for x in (value, expected))
    assert (gradient - expected).norm() < 1e-3 * expected.norm()


def test_srgan_dps_generator_has_no_bilinear_skip():
    config = published("srgan_dp")
    net = SR_MODELS[config.model](config.scale, channels=4, blocks=1, **config.model_options)
    for conv in net.parameters():
        nn.init.zeros_(conv)
    assert not net(torch.ones(1, 3, 5, 5)).any()


# PSPL: images in [0,255], SSIM with the constants of images in [0,1], sigma grows by 1 in 1,000 steps


def authors_ssim(a, b):
    """11x11 Gaussian, zero-padded, per channel."""
    line = torch.exp(-((torch.arange(11, dtype=a.dtype) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()
    window = (line[:, None] * line).expand(3, 1, 11, 11)

    def blur(x):
        return F.conv2d(x, window, padding=5, groups=3)

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


@pytest.mark.parametrize("loss, power", [("L1+PSPL", 1), ("MSE+PSPL", 2)])
@pytest.mark.parametrize("step", [1000, 20_000])
def test_pspl(loss, power, step):
    ours = LOSSES[loss](published("pspl"), nn.Identity())
    sr, hr = images(dtype=torch.float64)
    ours.begin_step(step)
    value = ours(sr, Target(hr), 0)
    a, b = (sr + 1) * 127.5, (hr + 1) * 127.5
    weight = 2 * torch.exp(-(((authors_ssim(b, a.detach()) + 1) / (1 * step / 1000 + 0)) ** 2))
    expected = (a * weight - b * weight).abs().pow(power).mean()
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, sr)[0] for x in (value, expected)), rtol=1e-6, atol=1e-12)


# UDL: its authors' second stage in their own set-up, and TLW's comparison with it (Table II)


@pytest.mark.parametrize("name, plus_one, of_batch", [("udl", 1, False), ("table2", 0, True)])
def test_udls_second_stage(name, plus_one, of_batch):
    """mean |sr v - hr v|, v = s - min s (+ 1)."""
    config = published(name)
    net = SR_MODELS["EDSR"](scale=4, channels=8, blocks=1, res_scale=0.1)
    torch.manual_seed(0)
    ours = LOSSES["L1+UDL"](config, net)
    ours.begin_epoch(net, config.udl_epoch)
    lr, hr = images(size=8)[1], images(size=32)[1]
    sr = net(lr)
    with torch.no_grad():
        s = ours.head(net.forward_features(lr))
    assert s.shape[1] == (1 if of_batch else 3)
    least = s.min() if of_batch else s.view(*s.shape[:2], -1).min(dim=-1)[0][..., None, None]
    v = s - least + plus_one
    value, expected = ours(sr, Target(hr, lr=lr), config.udl_epoch), (sr * v - hr * v).abs().mean()
    torch.testing.assert_close(value, expected)
    parameters = [*net.parameters()]
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_udls_set_up():
    config = published("udl")
    assert (config.udl_epoch, config.endepoch, config.batchsize, config.patch) == (400, 800, 64, 192)
    assert LOSSES["L1+UDL"](config, SR_MODELS["EDSR"](4, channels=8, blocks=1)).restart_epoch == 400
    net = SR_MODELS["EDSR"](config.scale, channels=8, **config.model_options)
    assert len(net.body) == 9 and {block.res_scale for block in net.body[:-1]} == {0.1}
