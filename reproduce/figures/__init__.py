"""The papers' figures, one command each: see __main__.py."""
