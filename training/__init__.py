"""A run in memory: its experiment, learners, schedule and state, and how it ends."""
