"""Bytes of one file as they land on the disk, for a build that reads them in another thread meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from yaie_async.store.blockmap import BLOCK, block_count


class LandingError(Exception):
    """The file will not land: its download failed, was cancelled, or starts over in another inode."""


class Landing:
    """One file of a snapshot that is being fetched. Thread-safe.

    Attributes:
        path: the file's path in the repository.
        size: in bytes.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self._changed = threading.Condition()
        self._there = bytearray(block_count(size))
        self._source: Path | None = None
        self._failed = False

    def begin(self, source: Path, blocks: bytes) -> None:
        """The bytes land in `source`; `blocks` has a non-zero byte for each 4 MiB block that is there (none: b"").

        A second source is a failure for whoever has begun to read the first.
        """
        with self._changed:
            if self._source is not None:
                self._failed = True
            self._source = source
            self._there[:] = blocks or bytes(len(self._there))
            self._changed.notify_all()

    def landed(self, first: int, stop: int) -> None:
        """Blocks `first` to `stop` (not included) are written."""
        with self._changed:
            self._there[first:stop] = b"\1" * (stop - first)
            self._changed.notify_all()

    def complete(self, source: Path) -> None:
        """The whole file is in `source`; nothing new for whoever saw it land there."""
        with self._changed:
            if self._source is None:
                self._source = source
            self._there[:] = b"\1" * len(self._there)
            self._changed.notify_all()

    def moved(self, source: Path) -> None:
        """The same file has another name now."""
        with self._changed:
            self._source = source

    def fail(self) -> None:
        """Nothing more will land: every waiting reader gets LandingError at once."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def open(self) -> int:
        """A descriptor of the file, as soon as it is there, open for reading. Blocks.

        Raises:
            LandingError.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._source is not None)
            if self._failed or self._source is None:
                raise LandingError(self.path)
            try:
                return os.open(self._source, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:  # pruned, or published under its final name a moment ago
                raise LandingError(self.path) from error

    def wait(self, start: int, stop: int) -> None:
        """Block until the bytes `start` to `stop` (not included) are written.

        Raises:
            LandingError.
        """
        first, last = start // BLOCK, block_count(min(stop, self.size))
        with self._changed:
            self._changed.wait_for(lambda: self._failed or 0 not in self._there[first:last])
            if self._failed:
                raise LandingError(self.path)
