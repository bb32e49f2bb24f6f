"""The distance of deep features: its formula, its chunks, its gradients, and the check of the images' range."""

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

from metrics import deep_features
from metrics.deep_features import MIN_BRIGHT, DeepDistance, RangeCheck

SIZE = (40, 47)
WIDTHS = (8, 12, 6)
BYTES = 10  # of activations per pixel, says the judge here


def images(*shape, seed=0, size=SIZE):
    return torch.rand(*shape, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Convolutions(nn.Module):
    """A small backbone of AlexNet's kind."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(3, 8, 11, stride=4, padding=2), nn.Conv2d(8, 12, 5, padding=2), nn.Conv2d(12, 6, 3, padding=1)]
        )

    def forward(self, x):
        features = []
        for conv in self.convs:
            x = torch.relu(conv(x))
            features.append(x)
            x = nn.functional.max_pool2d(x, 2)
        return features


class Pixels(nn.Module):
    """A backbone without parameters: dark pixels have no features at all, as behind a dead ReLU."""

    def forward(self, x):
        return [torch.relu(torch.cat([x, x.flip(1) + 0.1], dim=1) - 0.2), x * 1]


def deep(memory=1 << 40, backbone=None, widths=WIDTHS):
    """A judge on a few small depths, the same one whatever the memory."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = backbone or Convolutions()
        weights = [torch.rand(1, width, 1, 1) for width in widths]
    return DeepDistance(backbone, weights, "deep", 31, (BYTES, BYTES), memory)


def holding(count):
    """The judge whose memory holds count images, and not one more."""
    return deep(count * BYTES * SIZE[0] * SIZE[1] + 5)


def seen_by(judge):
    """The list into which the numbers of images go that the backbone is given."""
    sizes = []
    judge.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


# Values


def test_is_the_formula_of_lpips():
    """Eq. (1): sum over l of the mean over h, w of |weight_l * (y_l - y0_l)|^2, in loops and float64."""
    judge, a, b = deep(), images(2, seed=1), images(2, seed=2)
    found = judge(a, b)
    for n in range(2):
        total = 0.0
        for i, (ya, yb) in enumerate(zip(judge.backbone(a[n : n + 1]), judge.backbone(b[n : n + 1]))):
            (_, height, width), weight = ya[0].shape, getattr(judge, f"weight{i}").double().flatten()
            for h in range(height):
                for w in range(width):
                    u, v = ya[0, :, h, w].double(), yb[0, :, h, w].double()
                    difference = u / u.norm().clamp(min=1e-10) - v / v.norm().clamp(min=1e-10)
                    total += (weight * difference**2).sum().item() / (height * width)
        assert found[n].item() == pytest.approx(total, rel=1e-5)
    assert found.shape == (2,) and (found > 0.01).all()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("gradient", [False, True], ids=["no-gradient", "gradient"])
@pytest.mark.parametrize("at_once", [1, 3, 5])
@pytest.mark.parametrize("batch", [1, 4])
def test_chunks_change_nothing(batch, at_once, gradient, autocast):
    reference, mixtures = images(batch, seed=1), images(2, 3, batch, seed=2)
    weigh = torch.arange(1.0, 6 * batch + 1).view(2, 3, batch)  # every distance has its own part in the gradient
    results = []
    for judge in (deep(), holding(at_once)):
        x = mixtures.clone().requires_grad_(gradient)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(gradient):
            distance = judge.with_reference(reference)(x)
        assert distance.shape == (2, 3, batch) and distance.dtype == torch.float32
        assert distance.requires_grad == gradient
        results.append((distance.detach(), torch.autograd.grad((weigh * distance).sum(), x)[0] if gradient else None))
    (whole, whole_slope), (parts, parts_slope) = results
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    if gradient:
        assert whole_slope.flatten(3).any(dim=-1).all()
        assert (parts_slope - whole_slope).abs().max() <= (2e-2 if autocast else 1e-5) * whole_slope.abs().max()
        assert (parts_slope - whole_slope).norm() <= (1e-2 if autocast else 1e-5) * whole_slope.norm()


def test_every_image_meets_its_own_reference():
    reference, mixtures = images(4, seed=1), images(2, 3, 4, seed=2)
    mixtures[1, 2, 3] = reference[3]
    for judge in (deep(), holding(3)):
        together = judge.with_reference(reference)(mixtures)
        assert together[1, 2, 3] < 1e-9 and (together.flatten()[:-1] > 1e-3).all()
        torch.testing.assert_close(together[0, 1, 2:3], judge(mixtures[0, 1, 2:3], reference[2:3]))


# Memory


@pytest.mark.parametrize("batch, at_once", [(1, 1), (1, 4), (4, 1), (4, 3), (4, 7)])
def test_backbone_sees_no_more_than_fits(batch, at_once):
    judge, total = holding(at_once), 6 * batch
    sizes = seen_by(judge)
    distance = judge.with_reference(images(batch, seed=1))
    assert max(sizes) <= at_once and sum(sizes) == batch  # the reference too
    sizes.clear()
    result = distance(images(2, 3, batch, seed=2).requires_grad_())
    assert max(sizes) <= at_once and sum(sizes) == total
    sizes.clear()
    result.sum().backward()
    assert sizes == []  # nothing is computed twice
    with torch.no_grad():
        distance(images(2, 3, batch, seed=3))
    assert max(sizes) <= at_once and sum(sizes) == total


def test_what_fits_is_done_at_once_and_never_again():
    judge = holding(6)
    sizes = seen_by(judge)
    judge.with_reference(images(1, seed=1))(images(2, 3, 1, seed=2).requires_grad_()).sum().backward()
    assert sizes == [1, 6]


def test_more_images_at_once_without_a_gradient_to_follow():
    weights, memory = [torch.ones(width) for width in WIDTHS], 2 * BYTES * SIZE[0] * SIZE[1]
    judge = DeepDistance(Convolutions(), weights, "deep", 31, (BYTES, BYTES // 3), memory)
    sizes = seen_by(judge)
    distance = judge.with_reference(images(6, seed=1))
    distance(images(1, 6, seed=2).requires_grad_())
    with torch.no_grad():
        distance(images(1, 6, seed=2))
    assert sizes == [2, 2, 2, 2, 2, 2, 6]


def test_less_memory_than_one_image_takes_is_one_image():
    judge = deep(memory=1)
    sizes = seen_by(judge)
    assert judge(images(2, seed=1), images(2, seed=2)).isfinite().all() and sizes == [1, 1, 1, 1]


def test_nothing_is_kept_but_the_gradients():
    """Until the way back there are no features, no copies of the reference's and no state of the random stream."""
    distance = holding(1).with_reference(images(1, seed=1))
    mixtures = images(6, 1, seed=2).requires_grad_()

    def storages():
        return {t.untyped_storage().data_ptr(): t.numel() for t in gc.get_objects() if type(t) is torch.Tensor}

    before = storages()
    result = distance(mixtures)
    grown = {place: count for place, count in storages().items() if place not in before}
    assert sum(grown.values()) <= mixtures.numel() + 3 * result.numel()


@pytest.mark.parametrize("depths", [1, 3])
def test_without_a_gradient_only_one_depth_is_held_at_a_time(depths):
    alive = []

    class Counting(nn.Module):
        def forward(self, x):
            for _ in range(depths):
                feature = x.repeat(1, 2, 1, 1)
                alive.append(weakref.ref(feature))
                yield feature
                del feature
                assert sum(f() is not None for f in alive) <= 1

    judge = deep(backbone=Counting(), widths=(6,) * depths)
    with torch.no_grad():
        judge(images(1, seed=1), images(1, seed=2))
    assert len(alive) == 2 * depths


@pytest.mark.parametrize("at_once", [1, 100])
def test_reference_features_are_computed_once(at_once):
    judge = holding(at_once)
    sizes = seen_by(judge)
    distance = judge.with_reference(images(2, seed=1))
    assert sum(sizes) == 2
    for _ in range(3):
        distance(images(2, seed=2))
    assert sum(sizes) == 2 + 3 * 2


def test_range_is_checked_once_per_reference():
    judge, seen = deep(), []
    judge.check_range = lambda reference: seen.append(reference)
    reference = images(1, seed=1)
    distance = judge.with_reference(reference)
    distance(images(2, 1, seed=2))
    assert seen == [reference]
    judge(images(1, seed=2), reference)
    assert len(seen) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, whose peak of memory can be asked for")
def test_peak_of_memory_does_not_grow_with_the_images():
    peaks = []
    for count in (4, 32):
        judge, x = holding(1).cuda(), images(count, 1, seed=2).cuda().requires_grad_()
        distance = judge.with_reference(images(1, seed=1).cuda())
        distance(x).sum().backward()  # the first time loads kernels
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        distance(x).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before - x.numel() * 8)
    assert peaks[1] < 1.2 * peaks[0]


# Gradients


@pytest.mark.parametrize("at_once", [1, 100])
def test_gradients_flow_to_the_images_only(at_once):
    judge = holding(at_once).train()
    a, b = images(2, seed=1).requires_grad_(), images(2, seed=2).requires_grad_()
    judge(a, b).sum().backward()
    assert a.grad.any() and b.grad is None
    assert all(not p.requires_grad and p.grad is None for p in judge.parameters())
    assert all(not buffer.requires_grad for buffer in judge.buffers())


EVEN = {"black": -1.0, "white": 1.0, "grey": 0.0, "bright": 0.4}


@pytest.mark.parametrize("at_once", [1, 100])
@pytest.mark.parametrize("backbone, widths", [(Convolutions, WIDTHS), (Pixels, (6, 3))])
def test_finite_gradients(backbone, widths, at_once):
    judge = deep(at_once * BYTES * SIZE[0] * SIZE[1], backbone(), widths)
    judge.check_range.is_done = True
    pictures = [images(1, seed=1)] + [torch.full((1, 3, *SIZE), value) for value in EVEN.values()]
    pictures.append(images(1, seed=1).sign())  # -1 and 1 alone
    for reference in pictures:
        x = torch.stack(pictures).requires_grad_()
        distance = judge.with_reference(reference)(x)
        distance.sum().backward()
        assert distance.isfinite().all() and (distance >= 0).all() and x.grad.isfinite().all()
        same = [i for i, picture in enumerate(pictures) if torch.equal(picture, reference)]
        assert same and (distance[same] < 1e-9).all()


def test_all_features_zero():
    class Dead(nn.Module):
        def forward(self, x):
            return [torch.relu(x - 5)]

    judge, x = deep(backbone=Dead(), widths=(3,)), images(2, seed=1).requires_grad_()
    distance = judge(x, images(2, seed=2))
    distance.sum().backward()
    assert (distance == 0).all() and x.grad is not None and not x.grad.any()


# The range of the images


def flat(*values):
    return torch.cat([torch.full((1, 3, 4, 4), float(value)) for value in values])


@pytest.mark.parametrize(
    "low, high, remedy",
    [
        (0, 255, "x / 127.5 - 1"),
        (10, 200, "x / 127.5 - 1"),
        (-2.1, 2.6, "x.clamp(-1, 1)"),
        (-1, 1.2, "x.clamp(-1, 1)"),
        (-1.2, 0, "x.clamp(-1, 1)"),
        (float("-inf"), 0, "x.clamp(-1, 1)"),
    ],
)
def test_values_beyond_the_range_are_an_error_at_once(low, high, remedy):
    with pytest.raises(ValueError) as caught:
        RangeCheck()(flat(low, high))
    assert str(caught.value).endswith(f"expected RGB in [-1,1], pass {remedy}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0, 1])
def test_nan_is_an_error_that_says_so(place):
    image = flat(-1, 1)
    image[place, 1, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="with NaN; expected RGB") as caught:
        RangeCheck()(image)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize("batch", [1, 3])
def test_images_without_dark_pixels_are_a_warning_then_an_error(batch):
    check, bright = RangeCheck(), torch.rand(batch, 3, 4, 4)
    with pytest.warns(UserWarning, match=f"{batch} reference images .* pass 2 . x - 1"):
        check(bright)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        for _ in range((MIN_BRIGHT - 1) // batch - 1):
            check(bright)
        with pytest.raises(ValueError, match="expected RGB in .-1,1., pass 2 . x - 1"):
            check(bright)
    assert not check.is_done


def test_a_dark_pixel_settles_it():
    check, image = RangeCheck(), torch.rand(2, 3, 4, 4)
    with pytest.warns(UserWarning):
        check(image)
    image[1, 2, 3, 3] = -0.01
    check(image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(MIN_BRIGHT):
            check(torch.rand(2, 3, 4, 4))
        check(flat(255))
        check(torch.empty(1, 3, 4, 4, device="meta"))  # has no values to look at


def test_slightly_beyond_the_range_is_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in ((-1.001, 0.5), (-0.5, 1.001), (-1.001, 1.001)):
            check = RangeCheck()
            check(flat(*values))
            assert check.is_done


def test_judge_refuses_a_reference_out_of_range_and_only_that():
    with pytest.raises(ValueError, match=r"pass x / 127.5 - 1"):
        deep()(images(1), images(1).add(1).mul(127.5))
    with pytest.raises(ValueError, match="NaN"):
        deep()(images(1), images(1) * float("nan"))
    deep()(images(1) * 3, images(1))  # SR networks go beyond the range, above all at first


def test_the_warning_points_at_the_caller():
    judge = deep()
    with pytest.warns(UserWarning) as caught:
        judge.with_reference(torch.rand(1, 3, *SIZE))
    assert caught[0].filename == __file__ != deep_features.__file__
