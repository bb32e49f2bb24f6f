"""Images in: reading files, MATLAB-style downscaling, (LR, HR) pairs, patches and resumable batches."""

from .datasets import Batches, Pairs, Patches, make_pair
from .images import list_images, read_rgb
from .imresize import imresize

__all__ = ["Batches", "Pairs", "Patches", "imresize", "list_images", "make_pair", "read_rgb"]
