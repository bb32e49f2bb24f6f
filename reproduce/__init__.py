"""Commands that reproduce the project's own results."""
