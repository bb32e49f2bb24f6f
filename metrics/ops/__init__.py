"""Fast kernels of the judges, and distances in tiles."""
