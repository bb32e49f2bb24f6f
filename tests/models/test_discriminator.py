"""The discriminator: its published size and layout, a direct transcription, and the sizes it refuses."""

import pytest
import torch
import torch.nn.functional as F

from losses.discriminator import VGGDiscriminator


def small(size: int = 32) -> VGGDiscriminator:
    torch.manual_seed(0)
    return VGGDiscriminator(channels=4, size=size)


def test_published_size_and_names():
    with torch.device("meta"):
        net = VGGDiscriminator()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert sum(p.numel() for p in net.parameters()) == 14_499_401
    convs = {f"conv{i}_{j}.weight" for i in range(5) for j in (0, 1)} | {"conv0_0.bias"}
    norms = {f"bn{i}_{j}" for i in range(5) for j in (0, 1)} - {"bn0_0"}
    norms = {
        f"{n}.{e}" for n in norms for e in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    linears = {f"linear{i}.{e}" for i in (1, 2) for e in ("weight", "bias")}
    assert set(shapes) == convs | norms | linears
    assert shapes["conv2_0.weight"] == (256, 128, 3, 3) and shapes["conv4_1.weight"] == (512, 512, 4, 4)
    assert shapes["linear1.weight"] == (100, 8192) and shapes["linear2.weight"] == (1, 100)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [32, 64, 96])
@torch.no_grad()
def test_equals_its_transcription(size, training):
    net, x = small(size).train(training), torch.rand(3, 3, size, size) * 2 - 1
    state = {name: value.clone() for name, value in net.state_dict().items()}
    got = net(x)

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    for i in range(5):
        for j in (0, 1):
            x = F.conv2d(x, state[f"conv{i}_{j}.weight"], state.get(f"conv{i}_{j}.bias"), stride=1 + j, padding=1)
            if (i, j) != (0, 0):
                mean, var = state[f"bn{i}_{j}.running_mean"], state[f"bn{i}_{j}.running_var"]
                if training:
                    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
                mean, var, weight, bias = (
                    v.view(1, -1, 1, 1) for v in (mean, var, state[f"bn{i}_{j}.weight"], state[f"bn{i}_{j}.bias"])
                )
                x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
            x = leaky(x)
    assert x.shape == (3, 32, size // 32, size // 32)
    hidden = leaky(x.flatten(1) @ state["linear1.weight"].T + state["linear1.bias"])
    expected = hidden @ state["linear2.weight"].T + state["linear2.bias"]
    assert got.shape == (3, 1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_everything_learns_and_leaves_the_images_alone():
    net, images = small(), (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    before = images.detach().clone()
    F.binary_cross_entropy_with_logits(net(images), torch.ones(2, 1)).backward()
    assert torch.equal(images.detach(), before)
    assert images.grad.isfinite().all() and images.grad.any()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_batch_norm_moves_in_training_only():
    net, images = small(), torch.rand(2, 3, 32, 32)
    before = net.bn2_1.running_mean.clone()
    net.eval()(images)
    assert torch.equal(net.bn2_1.running_mean, before)
    net.train()(images)
    assert not torch.equal(net.bn2_1.running_mean, before)


def test_tells_two_kinds_of_images_apart():
    """Thirty steps separate flat images from noisy ones."""
    net = small()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    flat, noisy = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32) * 2 - 1, torch.rand(4, 3, 32, 32) * 2 - 1
    for _ in range(30):
        optimizer.zero_grad()
        (F.softplus(net(flat)) + F.softplus(-net(noisy))).mean().backward()
        optimizer.step()
    assert net(noisy).min() > net(flat).max()


@pytest.mark.parametrize("size, nearest", [(0, 32), (16, 32), (33, 32), (100, 96), (127, 128), (-64, 32)])
def test_other_sizes_are_refused(size, nearest):
    with pytest.raises(ValueError, match=rf"^size={size} of the discriminator is not a multiple of 32; use {nearest}$"):
        VGGDiscriminator(channels=4, size=size)


@pytest.mark.parametrize("height, width", [(64, 64), (32, 64), (16, 32), (33, 32)])
def test_images_of_another_size_are_refused(height, width):
    with pytest.raises(ValueError) as caught:
        small()(torch.zeros(2, 3, height, width))
    message = str(caught.value)
    assert f"{height}x{width}" in message and "patches of 32" in message and "\n" not in message
