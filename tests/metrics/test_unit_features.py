"""`difference` against its plain formula in float64, its gradient against autograd's, whatever the parts."""

import pytest
import torch

from metrics.ops import unit_features
from metrics.ops.unit_features import difference, unit_normalise


def plain(features, reference, weight):
    """The same, written down: (N,), float64 where the features are."""
    unit = features / features.square().sum(dim=1, keepdim=True).add(1e-20).sqrt()
    gap = unit - reference.repeat(len(features) // len(reference), 1, 1, 1)
    return (weight[:, None, None] * gap.square()).sum(dim=1).mean(dim=(1, 2))


def example(n=6, b=3, c=7, h=11, w=5, dtype=torch.float32, layout=torch.channels_last):
    torch.manual_seed(0)
    features, reference = torch.randn(n, c, h, w).relu(), unit_normalise(torch.randn(b, c, h, w).relu())
    return features.to(dtype).contiguous(memory_format=layout), reference, torch.rand(c)


@pytest.mark.parametrize("rows", [1, 4, 11, 22, 44, 10**6], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("n, b", [(1, 1), (6, 3), (4, 1), (3, 3)])
def test_is_the_plain_formula_whatever_is_taken_at_a_time(monkeypatch, rows, layout, n, b):
    parts, all_of_it = [], unit_features._parts
    row = 7 * 5
    monkeypatch.setattr(unit_features, "_room", lambda device: rows * row)

    def seen(batches):
        for part in all_of_it(batches):
            parts.append(batches[part[0], part[1], :, part[2]].numel())
            yield part

    monkeypatch.setattr(unit_features, "_parts", seen)
    features, reference, weight = example(n, b, layout=layout)
    coefficients = torch.arange(1.0, n + 1)
    x = features.clone().requires_grad_()
    found = difference(x, reference, weight)
    (coefficients * found).sum().backward()
    exact = features.double().requires_grad_()
    expected = plain(exact, reference.double(), weight.double())
    (coefficients * expected).sum().backward()
    assert found.dtype == torch.float32 and (expected > 0.01).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert max(parts) <= rows * row and sum(parts) == features.numel() and (rows < 10**6 or len(parts) == 1)
    lit = features.any(dim=1, keepdim=True).expand_as(features)  # elsewhere the slope is 1e10 times as steep
    torch.testing.assert_close(x.grad.double()[lit], exact.grad[lit], rtol=1e-4, atol=1e-7)


def test_bf16_features_are_compared_in_float32():
    features, reference, weight = example(dtype=torch.bfloat16)
    x = features.clone().requires_grad_()
    found = difference(x, reference, weight)
    torch.testing.assert_close(
        found.double(), plain(features.double(), reference.double(), weight.double()), rtol=1e-6, atol=0
    )
    found.sum().backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.any() and x.grad.isfinite().all()


def test_equal_and_empty_features_have_finite_gradients():
    features, reference, weight = example()
    features[:, :, :3] = 0
    reference = unit_normalise(features[:3])
    x = features.clone().requires_grad_()
    found = difference(x, reference, weight)
    found.sum().backward()
    assert (found[:3] == 0).all() and x.grad.isfinite().all() and not x.grad[:3].any()


def test_no_gradient_is_made_where_none_is_asked_for(monkeypatch):
    features, reference, weight = example()
    monkeypatch.setattr(torch, "empty_like", None)
    assert not difference(features, reference, weight).requires_grad
    with torch.no_grad():
        difference(features.requires_grad_(), reference, weight)
