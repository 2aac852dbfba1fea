"""`python -m yaie_async` is `yaie-async`."""

from yaie_async.cli import main

if __name__ == "__main__":
    main()
