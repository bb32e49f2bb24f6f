"""How fast, against what: one command each. Nothing imports these."""
