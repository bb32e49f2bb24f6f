"""What a run has in memory: its experiment, learners, schedule and state, and how it ends."""
