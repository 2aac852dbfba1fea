"""The standard streams, which may be anything: closed, a broken pipe, a stand-in of a notebook or of a tee."""

import os
from typing import Any

from yaie_async.core.log import contained


def is_terminal(stream: Any) -> bool:
    """Whether a stream, or None, says that it is a terminal and is one. Stand-ins lack `isatty`, or lie."""
    with contained():
        return bool(stream.isatty()) and os.isatty(stream.fileno())
    return False


class Unbreakable:
    """A stream that ignores what its writes raise."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with contained():
            self._stream.write(text)

    def flush(self) -> None:
        with contained():
            self._stream.flush()
