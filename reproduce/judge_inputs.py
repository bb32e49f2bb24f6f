"""The images that a judge of TLW is given.

SR outputs at all stages of training, distorted images, and mixtures of them with the reference by near-binary masks of
many means and spatial scales.
"""

import copy
import io
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs import Config
from data import PairedDataset, PatchDataset, ResumableBatchSampler
from losses.weighting import fixed_sum, relaxed_bernoulli
from train import train_step
from training.learner import build_learners


def endless_batches(pairs: PairedDataset, patch: int, batchsize: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented batches lr (B,3,patch/scale,patch/scale), hr (B,3,patch,patch) in [-1,1], endlessly."""
    patches = PatchDataset(pairs, patch, augment=True, seed=seed, skip_small=True)
    return iter(DataLoader(patches, batch_sampler=ResumableBatchSampler(len(patches), batchsize, seed)))


def train_generators(
    config: Config, stages: Iterable[int], pairs: PairedDataset, judge: nn.Module | None = None
) -> list[nn.Module]:
    """Train a network per loss of config on pairs; return frozen copies taken after `stages` steps."""
    learners = build_learners(config, torch.device("cpu"))
    batches = endless_batches(pairs, config.patch, config.batchsize, config.seed)
    copies = []
    for step in tqdm(range(max(stages) + 1), f"{config.model} x{config.scale}", leave=False, disable=None):
        if step in stages:
            copies += [copy.deepcopy(learner.net).eval().requires_grad_(False) for learner in learners]
        train_step(learners, judge, {}, *next(batches), epoch=0, precision=config.precision)
    return copies


def as_8_bit(image: Tensor) -> np.ndarray:
    """Convert (3,H,W) in [-1,1] to uint8 (H,W,3)."""
    return image.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()


def compress(image: Tensor, random: np.random.Generator) -> Tensor:
    """Compress the image (3,H,W) in [-1,1] as JPEG of quality 8 to 90."""
    file = io.BytesIO()
    Image.fromarray(as_8_bit(image)).save(file, "JPEG", quality=int(random.integers(8, 91)))
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 127.5 - 1


def blur(image: Tensor, random: np.random.Generator) -> Tensor:
    """Blur the image (3,H,W) with a Gaussian of sigma 0.4 to 4 pixels."""
    sigma = float(np.exp(random.uniform(np.log(0.4), np.log(4))))
    reach = int(3 * sigma) + 1
    window = torch.exp(-torch.arange(-reach, reach + 1).square() / (2 * sigma**2))
    window = (window / window.sum()).expand(3, 1, 1, -1)
    image = F.pad(image[None], (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(image, window, groups=3), window.mT, groups=3)[0]


def noise(image: Tensor, random: np.random.Generator) -> Tensor:
    """Add Gaussian noise to the image (3,H,W), with grains of 1 to 8 pixels, grey or coloured."""
    grain = int(random.choice([1, 1, 2, 4, 8]))
    size = [-(-x // grain) for x in image.shape[1:]]
    speckles = F.interpolate(torch.randn(1, int(random.choice([1, 3])), *size), image.shape[1:], mode="bilinear")[0]
    return image + speckles * float(np.exp(random.uniform(np.log(0.01), np.log(0.4))))


def tint(image: Tensor, random: np.random.Generator) -> Tensor:
    """Change each channel's contrast and mean in the image (3,H,W), like a barely trained network."""
    return image * torch.empty(3, 1, 1).uniform_(0.5, 1.2) + torch.randn(3, 1, 1) * 0.15


DISTORTIONS = (compress, blur, noise, tint)


def distort(sr: Tensor, hr: Tensor, random: np.random.Generator) -> Tensor:
    """Draw a pair's SR image (3,H,W): sr itself, sr blended with hr, sr distorted or hr distorted."""
    kind = random.uniform()
    if kind < 0.5:
        return sr
    if kind < 0.65:
        return torch.lerp(sr, hr, float(random.uniform(0.1, 0.95)))
    image = sr if kind < 0.8 else hr
    for distortion in random.choice(len(DISTORTIONS), size=random.integers(1, 3), replace=False):
        image = DISTORTIONS[distortion](image, random)
    return image


def standardised(field: Tensor) -> Tensor:
    """Shift and scale (B,C,H,W) to mean 0 and standard deviation 1 in each image."""
    deviation, mean = torch.std_mean(field, dim=(1, 2, 3), keepdim=True)
    return (field - mean) / (deviation + 1e-6)


def draw_weights(sr: Tensor, hr: Tensor, k: Tensor, random: np.random.Generator) -> Tensor:
    """Draw near-binary weights w (B,3,H,W) of mean about k (B,1,1,1), as TLW does.

    In each image their means mu follow smooth noise of random scale, the size of the error or the reference's edges,
    for all channels or each alone, weakly or strongly.
    """
    maps = []
    for error, reference in zip((sr - hr).abs(), hr):
        channels = int(random.choice([1, 3]))
        kind = random.integers(4)
        if kind == 0:
            edges = (
                reference.diff(dim=1, append=reference[:, -1:]).abs()
                + reference.diff(dim=2, append=reference[:, :, -1:]).abs()
            )
            field = F.avg_pool2d(edges[None], 5, 1, 2)
        elif kind == 1:
            width = int(random.choice([1, 3, 9]))
            field = F.avg_pool2d(error[None], width, 1, width // 2)
        else:
            cells = int(np.exp(random.uniform(np.log(2), np.log(error.shape[-1]))))
            coarse = torch.randn(1, channels, cells, cells)
            field = F.interpolate(coarse, error.shape[1:], mode="bicubic")
        field = field if channels == 3 else field.mean(dim=1, keepdim=True)
        strength = float(random.choice([-1, 1])) * float(random.choice([0, 0.5, 1, 2, 6]))
        maps.append(strength * standardised(field).expand(-1, 3, -1, -1))
    p = torch.sigmoid(torch.cat(maps))
    mu = torch.cat([fixed_sum(one[None], float(share)) for one, share in zip(p, k.flatten())])
    return relaxed_bernoulli(mu, torch.rand_like(mu))
