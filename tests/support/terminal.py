"""A terminal inside this process, for what is drawn on stderr."""

from __future__ import annotations

import os
import pty
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


class Terminal:
    """A pseudo terminal: `stream` is written to, `text` is what has arrived there so far."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._shown = b""

    @property
    def text(self) -> str:
        return self._shown.decode()

    def _read(self, outside: int) -> None:
        with suppress(OSError):  # the other end has been closed
            while part := os.read(outside, 65536):
                self._shown += part


@contextmanager
def open_terminal() -> Iterator[Terminal]:
    """Open a terminal. After the block all that was written is in its `text`."""
    outside, inside = pty.openpty()
    terminal = Terminal(open(inside, "w", encoding="utf-8"))  # noqa: SIM115 - a test may close it
    reader = threading.Thread(target=terminal._read, args=[outside])
    reader.start()
    try:
        yield terminal
    finally:
        with suppress(OSError):
            terminal.stream.close()
        reader.join()
        os.close(outside)
