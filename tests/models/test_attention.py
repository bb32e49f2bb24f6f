"""Attention in windows against the plain formula; cutting against roll, slices and a mask made pixel by pixel."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.ops import attention
from models.ops.attention import attend, window_partition


def plain(q, k, v, bias, masks, counts):
    logits = q @ k.mT / q.shape[-1] ** 0.5 + bias
    if masks is not None:
        logits = logits + masks.repeat_interleave(torch.tensor(counts), 0)[:, None]
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("counts", [(7,), (4, 2, 0, 1)])
@pytest.mark.parametrize("at_once", [1, 2 * 3 * 16 * 24, 1 << 20])
def test_attention_and_its_gradients(monkeypatch, counts, at_once):
    monkeypatch.setattr(attention, "_AT_ONCE", at_once)
    monkeypatch.setattr(attention, "_MAX_BATCH", 3)
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(7, 3, n, 5, dtype=torch.double, generator=random, requires_grad=True) for n in (16, 24, 24))
    bias = torch.randn(3, 16, 24, dtype=torch.double, generator=random, requires_grad=True)
    masks = -100.0 * (torch.rand(4, 16, 24, generator=random) > 0.5).double() if len(counts) > 1 else None
    upstream = torch.randn(7, 3, 16, 5, dtype=torch.double, generator=random)
    results = []
    for function in (plain, attend):
        out = function(q, k, v, bias, masks, counts)
        results.append((out, *torch.autograd.grad(out, (q, k, v, bias), upstream)))
    for expected, got in zip(*results):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, bias, masks, counts), results[0][0], rtol=0, atol=1e-12)


class Operations(TorchDispatchMode):
    """The names of all operations while it is on."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [False, True])
def test_the_fast_kernel_runs_with_and_without_a_gradient(training):
    q, k, v = (torch.randn(4, 2, 64, 8, requires_grad=training) for _ in range(3))
    with Operations() as operations, torch.set_grad_enabled(training):
        attend(q, k, v, 2 * torch.randn(2, 64, 64, requires_grad=True), None, (4,))
    assert "_scaled_dot_product_flash_attention_for_cpu" in operations.names


def test_no_logits_are_kept_for_the_way_back():
    q, k, v = (torch.randn(40, 2, 64, 8, requires_grad=True) for _ in range(3))
    bias, kept = torch.randn(2, 64, 64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        attend(q, k, v, bias, None, (40,))
    assert 0 < sum(kept) < 40 * 2 * 64 * 64 * 4 / 2


@pytest.mark.parametrize("height, width, window", [(8, 8, 8), (8, 24, 8), (24, 16, 8), (14, 21, 7)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows(height, width, window, shifted):
    shift = window // 2 if shifted else 0
    layout = window_partition(2, height, width, window, shift, torch.device("cpu"))
    x = torch.arange(2.0 * height * width).view(2, height, width, 1)
    assert torch.equal(layout.reverse(layout.partition(x), x.shape), x)
    cut = layout.partition(x).view(-1, window, window)
    kinds = torch.arange(len(layout.counts)).repeat_interleave(torch.tensor(layout.counts))
    assert len(cut) == len(kinds) == 2 * height * width // window**2
    rolled = x.roll((-shift, -shift), (1, 2))[..., 0]
    expected = {
        image[top : top + window, left : left + window].flatten().long().tolist()[0]: (
            image[top : top + window, left : left + window],
            top,
            left,
        )
        for image in rolled
        for top in range(0, height, window)
        for left in range(0, width, window)
    }
    for part, kind in zip(cut, kinds):
        wanted, top, left = expected[int(part[0, 0])]
        assert torch.equal(part, wanted)
        if not shifted:
            continue
        # Apart where the shift brought together what was at opposite ends of the image.
        y, z = (torch.arange(window) + start >= size - shift for start, size in ((top, height), (left, width)))
        y, z = (flags.flatten() for flags in torch.meshgrid(y, z, indexing="ij"))
        apart = (y[:, None] != y) | (z[:, None] != z)
        assert torch.equal(layout.masks[kind], -100.0 * apart)


def test_reordering_has_a_gradient():
    layout = window_partition(1, 4, 6, 2, 1, torch.device("cpu"))
    x = torch.randn(1, 4, 6, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(layout.partition, x) and torch.autograd.gradgradcheck(layout.partition, x)
