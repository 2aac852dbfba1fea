"""A flag that ends a wait in a thread, and that Ctrl-C can't corrupt."""

import threading
from contextlib import suppress


class Stop(threading.Event):
    """An event that is set once and never cleared.

    A second Ctrl-C raises KeyboardInterrupt between any two bytecodes of the loop's thread. Inside
    `threading.Event.set`, which is Python code, it left the event's lock held, and the next `set` waited for ever
    (1 run in 40). Here the only lock is released by one call into C.
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
        """Sleep for `timeout` seconds or until it is set. Return whether it is set."""
        if self._gate.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            self._open()
        return self._set

    def _open(self) -> None:
        with suppress(RuntimeError):  # it is open already
            self._gate.release()
