"""The command line, `yaie-async` or `python -m yaie_async`. Importing it does not import torch."""

from yaie_async.cli.app import main

__all__ = ["main"]
