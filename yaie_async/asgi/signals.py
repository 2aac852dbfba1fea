"""Detects the signals that stop a server, before the lifespan's shutdown.

After SIGTERM a server first waits for open responses, and only then sends the lifespan's shutdown event. A reader of
`/events`, or a request that waits for a model, would delay a deploy until the download has ended. So these handlers
record the signal and call the server's own handler.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

# gunicorn's quick shutdown sends SIGQUIT to its workers. Windows has no SIGQUIT.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGQUIT") if hasattr(signal, name)]

_Handler = Callable[[int, FrameType | None], object]


class StopSignals:
    """Records stop signals during a `with` block and forwards them to the previous handlers.

    Signals without a Python handler are left alone. Outside the main thread, which alone may set handlers, it does
    nothing.

    Attributes:
        seen: whether a stop signal has arrived.
    """

    def __init__(self) -> None:
        self.seen: bool = False
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
            if signal.getsignal(number) == self._note:  # else a newer handler was set, which may call this one
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        self._previous[number](number, frame)
