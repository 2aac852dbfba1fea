"""A flag that ends a wait in a thread, and that Ctrl-C can't break."""

from __future__ import annotations

import threading
from contextlib import suppress


class Stop(threading.Event):
    """An event that is set once, for good.

    A second Ctrl-C raises KeyboardInterrupt between any two bytecodes of the loop's thread. Within
    `threading.Event.set`, which is Python, it left the event's lock held, and the next `set` waited for ever
    (1 run in 40). Here the only lock is released by one call of C.
    """

    def __init__(self) -> None:
        super().__init__()
        self._set = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._open()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep for so many seconds, or until it is set; returns whether it is."""
        if self._gate.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            self._open()
        return self._set

    def _open(self) -> None:
        with suppress(RuntimeError):  # it is open
            self._gate.release()
