"""Extras: turns a failed import of an optional dependency into an error with the command that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

_SERVERS = ("starlette", "uvicorn")


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """A block that imports code which needs starlette and uvicorn, the dependencies of `extra`.

    Raises:
        LoaderError: one of them is not installed.
    """
    try:
        yield
    except ImportError as error:
        if error.name not in _SERVERS:
            raise
        from yaie_async.core.errors import LoaderError

        raise LoaderError(
            f"This command needs starlette and uvicorn, and {error.name} is not installed. "
            f"Install the extra: pip install 'yaie-async[{extra}]', or pip install '.[{extra}]' in a checkout."
        ) from error
