"""Benchmarks: one command each. Nothing outside this package imports them."""
