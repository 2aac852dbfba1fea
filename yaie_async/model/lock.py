"""The build lock: one build at a time in this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class BuildCancelled(Exception):
    """Raised when no task waits for the model any more. Never leaves the package."""


class BuildLock:
    """A lock whose holder can see whether another thread waits for it.

    Two `from_pretrained` at once leave parameters on meta and the default dtype at float16 (transformers#44940,
    #28461). A build with all its bytes waits for the lock. A build that may have to wait for bytes takes it only where
    no other build holds it or waits for it, and gives up as soon as it lacks bytes while another build waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = False
        self._waiting = 0

    def is_contended(self) -> bool:
        """Whether another build waits for the lock."""
        return self._waiting > 0

    def is_free(self) -> bool:
        """Whether no build holds the lock or waits for it."""
        return not self._taken and not self._waiting

    @contextmanager
    def acquired(self) -> Iterator[None]:
        """Wait for the lock, and hold it during the block."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._taken)
                self._taken = True
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def acquired_if_free(self) -> Iterator[bool]:
        """Take the lock if no build holds it or waits for it; yields success."""
        with self._changed:
            free = self.is_free()
            self._taken = self._taken or free
        try:
            yield free
        finally:
            if free:
                self._release()

    def _release(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify()


build_lock: BuildLock = BuildLock()
