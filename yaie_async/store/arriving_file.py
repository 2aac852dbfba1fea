"""Bytes of one file as they land on the disk, for a build that reads them in other threads meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from yaie_async.store.blockmap import BLOCK, block_count

# Seconds between two looks at what has landed. Readers look rather than being woken: that would take a lock on the
# loop's thread, which a Ctrl-C can leave held (fetch/stop.py). Here every change is one assignment.
_LOOK = 0.005


class ArrivalError(Exception):
    """The bytes will not land: the download failed, was cancelled or starts over, or the reader gave up waiting."""


class ArrivingFile:
    """One file of a snapshot that is being fetched. Thread-safe, and without locks.

    Args:
        path: the file's path in the repository.
        size: in bytes.
        finished: where the file is moved to, from one to the next, once all of it has landed.

    Attributes:
        path, size: the same.
        failed: what was read here is worth nothing: not all of it landed, or other bytes have taken its place.
    """

    def __init__(self, path: str, size: int, *finished: Path) -> None:
        self.path = path
        self.size = size
        self.failed: bool = False
        self._there = bytearray(block_count(size))
        self._finished = finished
        self._places: tuple[Path, ...] = ()

    def begin(self, source: Path, blocks: bytes) -> None:
        """The bytes land in `source`; `blocks` has a non-zero byte for each 4 MiB block that is there.

        A second source is a failure for whoever has begun to read the first.
        """
        if self._places:
            self.fail()
            return
        self._there[:] = blocks
        self._places = (source, *self._finished)

    def landed(self, first: int, stop: int) -> None:
        """Blocks `first` to `stop` (not included) are written."""
        self._there[first:stop] = b"\1" * (stop - first)

    def complete(self) -> None:
        """The whole file is there; nothing new for whoever saw it land."""
        if not self._places:
            self._places = self._finished
        self.landed(0, len(self._there))

    def fail(self) -> None:
        """Nothing more will land: every waiting reader gets ArrivalError within milliseconds."""
        self.failed = True

    def open(self, unless: Callable[[], bool]) -> int:
        """A descriptor of the file, as soon as it is there, open for reading. Does not wait once `unless()`.

        Raises:
            ArrivalError.
        """
        self._wait_for(lambda: bool(self._places), unless)
        for place in self._places:
            with suppress(OSError):  # it has been moved on
                return os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        raise ArrivalError(self.path)  # pruned

    def wait(self, start: int, stop: int, unless: Callable[[], bool]) -> None:
        """Block until the bytes `start` to `stop` (not included) are written. Does not wait once `unless()`.

        Raises:
            ArrivalError.
        """
        first, last = start // BLOCK, block_count(min(stop, self.size))
        self._wait_for(lambda: 0 not in self._there[first:last], unless)

    def _wait_for(self, there: Callable[[], bool], unless: Callable[[], bool]) -> None:
        while not self.failed and not there():
            if unless():
                raise ArrivalError(self.path)
            time.sleep(_LOOK)
        if self.failed:
            raise ArrivalError(self.path)
