"""Commands that make the project's own results again."""
