"""The papers' figures, each with a command: see __main__.py."""
