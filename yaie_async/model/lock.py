"""Whose turn it is to build: one build at a time in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class BuildCancelled(Exception):
    """Raised when nobody waits for the model any more; never leaves the package."""


class BuildLock:
    """A lock that tells its holder whether somebody else wants it.

    Two `from_pretrained` at once leave parameters on meta and the default dtype at float16 (transformers#44940,
    #28461). A build whose bytes are there waits for its turn; one that may have to wait for bytes takes it only where
    nobody has it or wants it, and gives it up as soon as it lacks bytes while somebody does.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = False
        self._waiting = 0

    def is_contended(self) -> bool:
        """Whether a build waits for its turn."""
        return self._waiting > 0

    def is_free(self) -> bool:
        """Whether nobody builds or waits to."""
        return not self._taken and not self._waiting

    @contextmanager
    def acquired(self) -> Iterator[None]:
        """Wait for the turn and have it."""
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
        """Have the turn if nobody has it or waits for it; yields whether that is so."""
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


build_lock = BuildLock()
