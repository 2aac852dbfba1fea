"""Runs `yaie-async` as `python -m yaie_async`."""

from yaie_async.cli import main

if __name__ == "__main__":
    main()
