"""Fast kernels of the SR networks, and inference in tiles."""
