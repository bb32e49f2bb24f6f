"""Images in: reading files, MATLAB-style downscaling, (LR, HR) pairs, patches and resumable batches."""

from .datasets import Pairs, Patches, Unreadable, make_pair
from .images import list_images, read_rgb
from .imresize import imresize
from .loading import Batches, load

__all__ = ["Batches", "Pairs", "Patches", "Unreadable", "imresize", "list_images", "load", "make_pair", "read_rgb"]
