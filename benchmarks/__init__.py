"""Measurements of the installed package. They are no part of it: run `python -m benchmarks` in the root of the checkout."""
