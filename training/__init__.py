"""A run in memory: experiment, learners, schedule and state, evaluation and report."""
