"""A file that is being downloaded, for a build whose threads read its bytes meanwhile."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from yaie_async.store.blockmap import BLOCK, block_count

# Seconds between two looks at the written blocks. Readers poll because waking them would need a lock on the event
# loop's thread, which a Ctrl-C can leave locked (fetch/stop.py). Here every change is one assignment.
_POLL = 0.005


class ArrivalError(Exception):
    """The bytes will not arrive: the download failed, was cancelled or starts over, or the reader gave up waiting.

    Its text is the file's path in the repository.
    """


class ArrivingFile:
    """One file of a snapshot that is being fetched. Thread-safe without locks.

    Readers call `open` and `wait`. Both raise ArrivalError once the file has failed, or once `cancelled()` is true
    while they wait. `finished` are the places that the file is moved to, in this order, once it is complete.
    """

    def __init__(self, path: str, size: int, *finished: Path) -> None:
        self.path = path  # in the repository
        self.size = size
        self.failed: bool = False  # the bytes read here are invalid: some are missing, or others have replaced them
        self._written = bytearray(block_count(size))  # by blocks; 0 where the bytes are missing
        self._finished = finished
        self._places: tuple[Path, ...] = ()

    def begin(self, source: Path, written: bytearray) -> None:
        """Start the file at `source`. Its writer changes the byte of each block in `written` from 0 once it is written.

        A second call makes the file fail, because readers have the first source.
        """
        if self._places:
            self.fail()
            return
        self._written = written
        self._places = (source, *self._finished)

    def complete(self) -> None:
        """Report that the whole file exists, also if no download has begun."""
        if not self._places:
            self._places = self._finished
        self._written = bytearray(b"\1") * len(self._written)

    def fail(self) -> None:
        """End every wait for the file with ArrivalError, within milliseconds."""
        self.failed = True

    def open(self, cancelled: Callable[[], bool]) -> int:
        """Open the file for reading as soon as it exists; return the descriptor."""
        self._wait_for(lambda: bool(self._places), cancelled)
        for place in self._places:
            with suppress(OSError):  # it has been moved to the next place
                return os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        raise ArrivalError(self.path)  # it was removed from the cache

    def wait(self, start: int, stop: int, cancelled: Callable[[], bool]) -> None:
        """Block until the bytes `start` to `stop` (exclusive) are written."""
        first, last = start // BLOCK, block_count(min(stop, self.size))
        self._wait_for(lambda: 0 not in self._written[first:last], cancelled)

    def _wait_for(self, arrived: Callable[[], bool], cancelled: Callable[[], bool]) -> None:
        while self.failed or not arrived():
            if self.failed or cancelled():
                raise ArrivalError(self.path)
            time.sleep(_POLL)
