"""Measurements of the installed package. They are not part of the package: run `python -m benchmarks` in the root of the checkout."""
