"""A run on disk: folder, lock, log, checkpoints and results."""
