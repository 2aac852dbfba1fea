"""The command line: `yaie-async`, or `python -m yaie_async`. Importing it imports no torch."""

from yaie_async.cli.app import main

__all__ = ["main"]
