"""Images in: reading files, MATLAB-style downscaling, (LR, HR) pairs, patches and resumable batches."""

from .datasets import ImageReadError, PairedDataset, PatchDataset, make_pair
from .images import list_images, read_rgb
from .imresize import imresize
from .loader import ResumableBatchSampler, load_batches

__all__ = [
    "ResumableBatchSampler",
    "PairedDataset",
    "PatchDataset",
    "ImageReadError",
    "imresize",
    "list_images",
    "load_batches",
    "make_pair",
    "read_rgb",
]
