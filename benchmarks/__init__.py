"""Benchmarks against peers, each with its ratios in one run: `python -m benchmarks --help`."""
