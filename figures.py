"""Pictures of what a run learned."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
import torch


@torch.no_grad()
def weight_maps(learners, pairs, device, path: Path) -> Path | None:
    """Write a picture of the first image: the reference, then for each learner with a weighting network its SR
    image, its error and its weight map g_phi. Returns path, or None where no learner has such a network."""
    weighted = [learner for learner in learners if learner.helper_opt]
    if not weighted:
        return None
    lr, hr = (image[None].to(device) for image in pairs[0])
    size = (12.4, (0.3 + 3 * hr.shape[2] / hr.shape[3]) * len(weighted))
    figure, axes = plt.subplots(len(weighted), 4, figsize=size, squeeze=False, layout="constrained")
    for row, learner in zip(axes, weighted):
        learner.net.eval(), learner.loss.eval()
        sr = learner.net(lr).clamp(-1, 1)
        mu = learner.loss.helper(hr, sr, k=0.5)
        learner.net.train(), learner.loss.train()
        grey = hr[0].mean(dim=0).cpu()
        error, weight = (x[0].mean(dim=0).cpu() for x in ((hr - sr).abs(), mu))
        for ax, title in zip(row, ("reference", f"SR, {learner.name}", "|error|", "weights of the loss (k = 0.5)")):
            ax.set_title(title, fontsize=10)
            ax.axis("off")
        for ax, image in zip(row, (hr, sr)):
            ax.imshow(image[0].permute(1, 2, 0).cpu() / 2 + 0.5)
        row[2].imshow(error, cmap="magma")
        row[3].imshow(grey, cmap="gray")
        shown = row[3].imshow(weight, cmap="inferno", vmin=0, vmax=1, alpha=0.8)
        figure.colorbar(shown, ax=row[3], fraction=0.05)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
