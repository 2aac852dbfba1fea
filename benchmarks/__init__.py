"""Figures against peers, each a ratio in one run: `python -m benchmarks download|stall|live|ready`."""
