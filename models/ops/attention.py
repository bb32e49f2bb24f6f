"""softmax(q k^T / sqrt(d) + bias + mask) v in windows that share a learned bias; window partition.

On the CPU torch's scaled_dot_product_attention has no fast kernel for a bias that needs a gradient: it falls back to
plain operations, each of which reads and writes the logits of all windows. Here the forward uses the fast kernel, and
the backward processes a few windows at a time, so that their logits stay in the cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_AT_ONCE = 1 << 20  # logits in the backward: 4 MB in float32, a part of the last-level cache
_LANES = 8  # CPUs multiply matrices faster if their sides are multiples of it
_MAX_BATCH = 65535  # the limit of CUDA's kernels, which put the batch in the grid's third dimension


class Windows(NamedTuple):
    """The partition of images (B,H,W,C) into windows of n positions, cyclically shifted or not.

    order, inverse: the permutation of the B*H*W positions into windows, and back. counts: the number of windows of each
    kind. masks: added to the logits of each kind, (kinds,n,n), or None; see `attend`.
    """

    order: Tensor
    inverse: Tensor
    counts: tuple[int, ...]
    masks: Tensor | None

    def partition(self, x: Tensor) -> Tensor:
        """(B,H,W,C) -> (B*H*W,C), one window after another."""
        return _Reorder.apply(x.flatten(0, 2), self.order, self.inverse)

    def reverse(self, x: Tensor, shape: torch.Size) -> Tensor:
        """(B*H*W,C), in any view -> `shape` (B,H,W,C); the inverse of partition."""
        return _Reorder.apply(x.reshape(-1, shape[-1]), self.inverse, self.order).view(shape)


def window_partition(batch: int, height: int, width: int, window: int, shift: int, device: torch.device) -> Windows:
    """Partition images (batch,height,width) into windows shifted up and left by `shift`.

    height and width are multiples of the window. The cyclic shift joins opposite borders in the windows of the last row
    and column: the mask is -100 between positions that are not neighbours in the image. So there are four kinds of
    windows: inside, last column, last row, corner.
    """
    rows, columns = ((torch.arange(size, device=device) + shift) % size for size in (height, width))
    order = torch.arange(batch, device=device)[:, None, None] * height * width + rows[:, None] * width + columns
    down, across = height // window, width // window
    order = order.view(batch, down, window, across, window).transpose(2, 3).reshape(-1, window**2)
    counts, masks = (len(order),), None
    if shift:
        last_row, last_column = (torch.arange(size, device=device) == size - 1 for size in (down, across))
        kinds = (2 * last_row[:, None] + 1 * last_column).expand(batch, -1, -1).flatten()
        order = order[kinds.argsort(stable=True)]
        inner = (down - 1) * (across - 1) * batch
        counts = (inner, (down - 1) * batch, (across - 1) * batch, batch)
        beyond = torch.arange(window, device=device) >= window - shift
        regions = torch.stack(
            [
                (2 * (last_row * beyond)[:, None] + 1 * (last_column * beyond)).flatten()
                for last_row in (False, True)
                for last_column in (False, True)
            ]
        )
        masks = -100.0 * (regions[:, :, None] != regions[:, None, :])
    order = order.flatten()
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
    return Windows(order, inverse, counts, masks)


class _Reorder(torch.autograd.Function):
    """x[order], whose backward is an index_select by the inverse, not a scattered sum."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(order, inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, d_out):
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(d_out, inverse, order), None, None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, masks: Tensor | None, counts: Sequence[int]) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v in each of N windows -> (N,heads,n,d).

    Args:
        q: (N,heads,n,d); the windows are sorted by kind.
        k, v: (N,heads,m,d).
        bias: (heads,n,m).
        masks: (kinds,n,m), added to the logits of each kind; None: no mask.
        counts: the number of windows of each kind.
    """
    if q.device.type == "cpu" and q.dtype == bias.dtype and torch.is_grad_enabled() and bias.requires_grad:
        return _Attention.apply(q, k, v, bias, masks, tuple(counts))
    return _forward(q, k, v, bias, masks, counts)


def _kinds(masks: Tensor | None, counts: Sequence[int]):
    """Yield (slice of the windows, mask or None) for each kind that has windows."""
    first = 0
    for i, count in enumerate(counts):
        if count:
            yield slice(first, first + count), None if masks is None else masks[i]
        first += count


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, masks: Tensor | None, counts: Sequence[int]) -> Tensor:
    outs, d = [], q.shape[3]
    if q.device.type == "cpu" and d % _LANES:
        q, k, v = (F.pad(x, (0, -d % _LANES)) for x in (q, k, v))
    for windows, mask in _kinds(masks, counts):
        logits = (bias if mask is None else bias + mask).to(q.dtype)[None]
        for parts in zip(*(x[windows].split(_MAX_BATCH) for x in (q, k, v))):
            outs.append(F.scaled_dot_product_attention(*parts, attn_mask=logits, scale=d**-0.5)[..., :d])
    return torch.cat(outs) if len(outs) > 1 else outs[0]


class _Attention(torch.autograd.Function):
    """`attend` on the CPU with a gradient for the bias; the backward recomputes the logits."""

    @staticmethod
    def forward(ctx, q, k, v, bias, masks, counts):
        ctx.save_for_backward(q, k, v, bias, masks)
        ctx.counts = counts
        # torch rejects the fast kernel if the bias requires a gradient, even where none is recorded.
        return _forward(q.detach(), k.detach(), v.detach(), bias.detach(), masks, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        q, k, v, bias, masks = ctx.saved_tensors
        (_, heads, n, d), m = q.shape, k.shape[2]
        scale, step = d**-0.5, max(1, _AT_ONCE // (heads * n * m))
        d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
        d_bias = torch.zeros_like(bias)
        rooms = [x.new_zeros(step, heads, x.shape[2], d + -d % _LANES) for x in (q, k, v, d_out)]
        all_p, all_d_p = (q.new_empty(step, heads, n, m) for _ in range(2))
        for windows, mask in _kinds(masks, ctx.counts):
            logits = bias if mask is None else bias + mask
            for first in range(windows.start, windows.stop, step):
                here = slice(first, min(first + step, windows.stop))
                count = here.stop - here.start
                for room, x in zip(rooms, (q, k, v, d_out)):
                    room[:count, ..., :d] = x[here]
                pq, pk, pv, d_o = (room[:count].flatten(0, 1) for room in rooms)
                p, d_p = all_p[:count].copy_(logits).flatten(0, 1), all_d_p[:count].flatten(0, 1)
                torch.softmax(torch.baddbmm(p, pq, pk.mT, alpha=scale, out=p), dim=-1, out=p)
                torch.bmm(d_o, pv.mT, out=d_p)
                d_s = torch._softmax_backward_data(d_p, p, -1, p.dtype)  # pyright: ignore[reportPrivateImportUsage]
                d_bias += d_s.unflatten(0, (count, heads)).sum(0)
                products = torch.bmm(d_s, pk).mul_(scale), torch.bmm(d_s.mT, pq).mul_(scale), torch.bmm(p.mT, d_o)
                for gradient, product in zip((d_q, d_k, d_v), products):
                    gradient[here] = product.unflatten(0, (count, heads))[..., :d]
        return d_q, d_k, d_v, d_bias, None, None
