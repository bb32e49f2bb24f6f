"""Training and test images: reading, MATLAB-style downscaling, pairs, patches, resumable batches."""

from .cache import ImageCache
from .datasets import ImageReadError, PairedDataset, make_pair
from .degradations import DEGRADATIONS
from .images import list_images, read_rgb, to_grey
from .imresize import imresize
from .loader import ResumableBatchSampler, load_batches
from .partners import match_sr
from .patches import PatchDataset

__all__ = [
    "DEGRADATIONS",
    "ImageCache",
    "ImageReadError",
    "PairedDataset",
    "PatchDataset",
    "ResumableBatchSampler",
    "imresize",
    "list_images",
    "load_batches",
    "make_pair",
    "match_sr",
    "read_rgb",
    "to_grey",
]
