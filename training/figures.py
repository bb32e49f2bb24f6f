"""Pictures of what a run learned."""

import io
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def _pyplot():
    """matplotlib.pyplot, which needs no screen and says nothing of a home folder that cannot be written to."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib  # here, for a run without pictures does not need it

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


@torch.no_grad()
def weight_maps(nets: Mapping[str, tuple[nn.Module, nn.Module]], lr: Tensor, hr: Tensor) -> bytes:
    """The PNG of a picture, a row for each name: the reference, the SR image, its error, the weights over the image.

    nets: name -> (SR network, weighting network); lr (1,3,h,w) and hr (1,3,s*h,s*w) in [-1,1] on their device.
    """
    plt = _pyplot()
    size = (12.4, (0.3 + 3 * hr.shape[2] / hr.shape[3]) * len(nets))
    figure, axes = plt.subplots(len(nets), 4, figsize=size, squeeze=False, layout="constrained")
    for row, (name, (net, weighting)) in zip(axes, nets.items()):
        modes = net.training, weighting.training
        net.eval(), weighting.eval()
        sr = net(lr).clamp(-1, 1)
        weight = weighting(hr, sr, k=0.5)
        net.train(modes[0]), weighting.train(modes[1])
        shown = "SR, " + name.replace("[", "\n[")
        for ax, title in zip(row, ("reference", shown, "|error|", "weights of the loss (k = 0.5)")):
            ax.set_title(title, fontsize=10)
            ax.axis("off")
        for ax, image in zip(row, (hr, sr)):
            ax.imshow(image[0].permute(1, 2, 0).cpu() / 2 + 0.5)
        row[2].imshow((hr - sr).abs()[0].mean(dim=0).cpu(), cmap="magma")
        row[3].imshow(hr[0].mean(dim=0).cpu(), cmap="gray")
        shown = row[3].imshow(weight[0].mean(dim=0).cpu(), cmap="inferno", vmin=0, vmax=1, alpha=0.8)
        figure.colorbar(shown, ax=row[3], fraction=0.05)
    file = io.BytesIO()
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file.getvalue()
