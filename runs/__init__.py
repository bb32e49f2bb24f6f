"""What a run has on disk: its folder, lock, log and checkpoints."""
