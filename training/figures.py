"""Pictures: a run's weight maps, drawn in bounded memory, and where two SR images differ most."""

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import configs
from losses.weighting import WeightingNet, fixed_sum
from metrics.evaluate import MEMORY
from models.ops.tiled import TiledUpscaler, tiles
from runs.atomic import atomic_write

TILE = 1 << 16  # pixels per tile: about 50 MiB of the weighting network's activations
LONGEST = 768  # pixels of a drawn image's longer side; larger images are averaged down


def _figure(size: tuple[float, float]):
    """An empty matplotlib figure, without matplotlib's warning if the home folder is not writable."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure  # here, because it takes a second and most commands draw nothing

    return Figure(size, layout="constrained")


@torch.no_grad()
def weights_of(weighting: WeightingNet, hr: Tensor, sr: Tensor, k: float) -> Tensor:
    """The weights weighting(hr, sr, k) in eval mode, (B,3,H,W), in bounded memory for any image size.

    The logits are computed in tiles; FixedSum, which needs the whole image's mean but no activations, on the whole.
    """
    training = weighting.training
    weighting.eval()
    step, reach = weighting.scale, weighting.receptive_radius
    logits = torch.empty_like(hr)
    down, across = (-(-x // step) for x in hr.shape[-2:])
    try:
        for rows, columns in tiles(down, across, TILE // (len(hr) * step**2), reach):
            rows, columns = ([x * step for x in ends] for ends in (rows, columns))
            seen = (..., slice(rows[0], rows[3]), slice(columns[0], columns[3]))
            part = weighting.logits(torch.cat([hr[seen], sr[seen]], dim=1)).to(hr.dtype)
            own = (
                ...,
                slice(rows[1] - rows[0], rows[2] - rows[0]),
                slice(columns[1] - columns[0], columns[2] - columns[0]),
            )
            logits[..., rows[1] : rows[2], columns[1] : columns[2]] = part[own]
    finally:
        weighting.train(training)
    return fixed_sum(logits.sigmoid_(), k)


def _shown(image: Tensor) -> np.ndarray:
    """An image (1,C,H,W) as (H,W,C), or (H,W) if C is 1, averaged down if it is large."""
    height, width = image.shape[-2:]
    shrink = LONGEST / max(height, width)
    if shrink < 1:
        image = F.adaptive_avg_pool2d(image, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    return image[0].permute(1, 2, 0).squeeze(2).cpu().numpy()


@torch.no_grad()
def weight_maps(nets: Mapping[str, tuple[nn.Module, WeightingNet]], lr: Tensor, hr: Tensor) -> bytes:
    """Draw a PNG with a row for each name: reference, SR image, its error, weights over the image.

    nets: name -> (SR network, weighting network); lr (1,3,h,w) and hr (1,3,s*h,s*w) in [-1,1] on their device. Memory
    is bounded as in a validation.
    """
    size = (12.4, (0.3 + 3 * hr.shape[2] / hr.shape[3]) * len(nets))
    figure = _figure(size)
    axes = figure.subplots(len(nets), 4, squeeze=False)
    for row, (name, (net, weighting)) in zip(axes, nets.items()):
        sr = TiledUpscaler(net, MEMORY // 4)(lr).float().clamp_(-1, 1)
        weight = weights_of(weighting, hr, sr, k=0.5).mean(dim=1, keepdim=True)
        title = "SR, " + name.replace("[", "\n[")
        for ax, title in zip(row, ("reference", title, "|error|", "weights of the loss (k = 0.5)")):
            ax.set_title(title, fontsize=10)
            ax.axis("off")
        for ax, image in zip(row, (hr, sr)):
            ax.imshow(_shown(image.expand(-1, 3, -1, -1)) / 2 + 0.5)
        row[2].imshow(_shown((hr - sr).abs_().mean(dim=1, keepdim=True)), cmap="magma")
        row[3].imshow(_shown(hr.mean(dim=1, keepdim=True)), cmap="gray")
        shown = row[3].imshow(_shown(weight), cmap="inferno", vmin=0, vmax=1, alpha=0.8)
        figure.colorbar(shown, ax=row[3], fraction=0.05)
    return _png(figure)


def draw_weights(path: Path, weighted: Mapping, validation: Sequence, device: torch.device) -> None:
    """Draw the weights on the first validation image; print a note instead of raising an error.

    weighted: as in `weight_maps`; validation: pairs of lr (3,h,w) and hr (3,s*h,s*w).
    """
    try:
        lr, hr = (image[None].to(device) for image in validation[0])
        atomic_write(path, weight_maps(weighted, lr, hr))
        print(f"weights drawn: {path}")
    except Exception as error:
        print(f"note: {path} was not drawn ({configs.one_line(str(error)) or type(error).__name__})")


class Crops(NamedTuple):
    """The same crop of one image by each method."""

    title: str
    images: dict[str, Tensor]  # by method: (3 or 1,h,w) in [-1,1]
    captions: dict[str, str]  # by method: the text below


def most_different(one: Tensor, other: Tensor, side: int) -> tuple[slice, slice]:
    """The rows and columns of the square in which two images (1,3,H,W) differ most, by squared error.

    side: the square's, in pixels; positions are tried in steps of an eighth of it.
    """
    difference = (one - other).square().mean(dim=1, keepdim=True)
    height, width = (min(side, x) for x in difference.shape[-2:])
    sums = F.avg_pool2d(difference, (height, width), stride=max(1, side // 8))
    row, column = divmod(int(sums.argmax()), sums.shape[-1])
    top, left = (x * max(1, side // 8) for x in (row, column))
    return slice(top, top + height), slice(left, left + width)


def side_by_side(rows: Sequence[Crops]) -> bytes:
    """Draw a PNG with a row for each image: its crops side by side, with captions below."""
    columns = max(len(row.images) for row in rows)
    lines = max(caption.count("\n") + 1 for row in rows for caption in (row.title, *row.captions.values()))
    figure = _figure((2.2 * columns, (2.5 + 0.16 * lines) * len(rows)))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows):
        for ax in line:
            ax.set(xticks=[], yticks=[], frame_on=False)
        for ax, (name, image) in zip(line, row.images.items()):
            ax.imshow(
                (image.expand(3, -1, -1).permute(1, 2, 0).cpu() / 2 + 0.5).clamp(0, 1).numpy(), interpolation="nearest"
            )
            ax.set_title(name.replace("[", "\n["), fontsize=9)
            ax.set_xlabel(row.captions.get(name, ""), fontsize=8)
        line[0].set_xlabel(row.title, fontsize=8)
    return _png(figure)


def _png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=120)
    return file.getvalue()
