"""Our HAT against spandrel's, which holds the authors' architecture: same weights, same output."""

import pytest
import torch
import torch.nn.functional as F

from models import SR_MODELS
from models.hat import HAT, DropPath
from models.released import from_published_hat, scale_from_shapes
from models.upsample import reflect_to_multiple

PUBLISHED = dict(
    embed_dim=180,
    depths=(6,) * 6,
    num_heads=(6,) * 6,
    window_size=16,
    compress_ratio=3,
    squeeze_factor=30,
    conv_scale=0.01,
    overlap_ratio=0.5,
    mlp_ratio=2.0,
    drop_path_rate=0.1,
)
SMALL = dict(PUBLISHED, embed_dim=24, depths=(2, 3), num_heads=(2, 3), window_size=8, squeeze_factor=6)
OUR_SMALL = dict(embed=24, depths=(2, 3), heads=(2, 3), window=8, squeeze_factor=6)


def spandrel_hat(scale: int, options: dict) -> torch.nn.Module:
    """spandrel's HAT in [0,1], with every parameter moved off its initial value so that each one matters."""
    architectures = pytest.importorskip("spandrel.architectures.HAT")
    torch.manual_seed(scale)
    net = architectures.HAT(upscale=scale, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def assert_equal_outputs(theirs: torch.nn.Module, ours: HAT, size: tuple[int, int]) -> None:
    ours.load_state_dict(from_published_hat({"params_ema": theirs.state_dict()}))
    # In double precision: the random weights amplify single precision's rounding to about 1e-4.
    theirs, ours, lr = theirs.double(), ours.double().eval(), torch.rand(2, 3, *size, dtype=torch.double)
    with torch.no_grad():
        expected, got = 2 * theirs(lr) - 1, ours(2 * lr - 1)
    assert got.shape == (2, 3, ours.scale * size[0], ours.scale * size[1])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(16, 24), (13, 19)])
def test_small_hat_equals_spandrel(scale, size):
    assert_equal_outputs(spandrel_hat(scale, SMALL), HAT(scale, **OUR_SMALL), size)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_published_hat_equals_spandrel(scale):
    theirs = spandrel_hat(scale, PUBLISHED)
    assert scale_from_shapes(theirs.state_dict()) == scale
    assert_equal_outputs(theirs, SR_MODELS["HAT"](scale=scale), (18, 16))


def test_drop_path_schedule_equals_spandrel():
    theirs = [m.drop_prob for m in spandrel_hat(2, PUBLISHED).modules() if type(m).__name__ == "DropPath"]
    ours = [1 - m.keep for m in HAT(2).modules() if type(m).__name__ == "DropPath"]
    assert ours[0] == 0  # spandrel has an Identity there
    assert ours[1:] == pytest.approx(theirs)


def test_gradients_equal_spandrel():
    theirs, ours = spandrel_hat(2, SMALL), HAT(2, **OUR_SMALL).eval()
    ours.load_state_dict(from_published_hat(theirs.state_dict()))
    lr = torch.rand(1, 3, 16, 16)
    (2 * theirs(lr) - 1).square().mean().backward()
    ours(2 * lr - 1).square().mean().backward()
    for name, parameter in theirs.named_parameters():
        # from_published_hat rescales these two, so their gradients are scaled the other way round.
        factor = 2 if name == "conv_first.weight" else 0.5 if name.startswith("conv_last") else 1
        torch.testing.assert_close(ours.get_parameter(name).grad, factor * parameter.grad, rtol=1e-3, atol=1e-5)


def test_reflection_equals_torch_where_torch_can():
    x = torch.rand(1, 2, 13, 20)
    assert torch.equal(reflect_to_multiple(x, 16), F.pad(x, (0, 12, 0, 3), mode="reflect"))
    assert reflect_to_multiple(x[:, :, :, :16].repeat(1, 1, 16, 1)[:, :, :16], 16).shape == (1, 2, 16, 16)


def test_reflection_of_tiny_images_repeats():
    x = torch.tensor([[1.0, 2.0, 3.0]]).view(1, 1, 1, 3)
    expected = torch.tensor([1.0, 2, 3, 2, 1, 2, 3, 2]).expand(1, 1, 8, 8)
    assert torch.equal(reflect_to_multiple(x, 8), expected)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.3).train()(torch.ones(4000, 2, 2, 2)).flatten(1)
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert out.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_drop_path_keeps_the_type(dtype):
    assert DropPath(0.3).train()(torch.ones(2, 2, 2, 2, dtype=dtype)).dtype == dtype


def test_drop_path_follows_the_global_seed_and_only_in_training():
    net, lr = HAT(2, drop_path=0.5, **OUR_SMALL).train(), torch.rand(1, 3, 8, 8)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return net(lr)

    with torch.no_grad():
        outputs = [run(seed) for seed in range(8)]
        assert torch.equal(run(0), outputs[0])
        assert any(not torch.equal(outputs[0], other) for other in outputs[1:])
        net.eval()
        assert torch.equal(run(0), run(1))


def test_odd_border_is_refused():
    with pytest.raises(ValueError, match=r"overlap_ratio=0.5 widens window=7 by 3, an odd number; choose"):
        HAT(4, window=7)
