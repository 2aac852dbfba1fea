"""Noticing that the server is told to stop, before it says so.

A server that got SIGTERM first waits for the answers that are under way, and only then sends the lifespan's
shutdown: a person watching `/events`, or a request waiting for a model, would hold up a deploy for as long as the
download takes. So the signal is noted on its way to the server's own handler.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

# gunicorn's quick shutdown sends SIGQUIT to its workers; Windows has no such signal.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGQUIT") if hasattr(signal, name)]

_Handler = Callable[[int, FrameType | None], object]


class StopSignals:
    """A `with` block in which signals to stop are noted, and handed on to whoever handled them before.

    A signal that nobody handles is left alone, and so is everything where signals can't be had (no main thread).

    Attributes:
        seen: whether one has come.
    """

    def __init__(self) -> None:
        self.seen = False
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._previous[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._note:  # else someone put another before it, and hands on to it
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        self._previous[number](number, frame)
