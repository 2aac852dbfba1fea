"""From a body's bytes to their place in a partial: what the thread that reads a body does with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from yaie_async.fetch.stop import Stop
from yaie_async.store.blockmap import BLOCK
from yaie_async.store.diskio import write_all
from yaie_async.store.os_errors import cache_errors
from yaie_async.store.partials import Partial


class Limit(Protocol):
    """What `max_bytes_per_second` leaves."""

    @property
    def largest_read(self) -> int:
        """Bytes that one read should ask for at most."""

    def wait_after(self, size: int) -> float:
        """Seconds to wait after `size` bytes have been read."""


class FullError(Exception):
    """More came than was asked for: all that was asked for is written. Never leaves the fetch layer."""


class RangeSink:
    """Writes one range of a file; its blocks are recorded once their last byte is written.

    Attributes:
        position: up to where the range is written; read by the loop's thread meanwhile.
        stop: where the range ends.
        largest: bytes that one read should ask for at most.
    """

    def __init__(
        self,
        partial: Partial,
        start: int,
        stop: int,
        count: Callable[[int], None],
        limit: Limit,
    ) -> None:
        self.position: int = start
        self.stop = stop
        self.largest: int = limit.largest_read
        self._partial = partial
        self._count = count
        self._limit = limit
        self._recorded = start // BLOCK
        self._skip = 0

    def begin(self, offset: int) -> None:
        """The next bytes are those from `offset` of the file: what lies before `position` is passed over."""
        self._skip = self.position - offset

    def write(self, data: memoryview, stopped: Stop) -> None:
        """Take the next bytes of the body.

        Raises:
            FullError: so that a body without an end is not read for ever.
            DiskFullError, CacheAccessError.
        """
        passed = min(self._skip, len(data))
        self._skip -= passed
        data = data[passed:]
        wanted = data[: self.stop - self.position]
        if wanted:
            self._write(wanted, stopped)
        if len(wanted) < len(data):
            raise FullError

    def _write(self, data: memoryview, stopped: Stop) -> None:
        with cache_errors(self._partial.path, needed=self.stop - self.position):
            write_all(self._partial.fd, data, self.position)
        self.position += len(data)
        self._record()
        self._count(len(data))
        # The event, so that a cancelled thread does not sleep on.
        stopped.wait(self._limit.wait_after(len(data)))

    def _record(self) -> None:
        whole = self.position // BLOCK
        if self.position == self._partial.size:
            whole = -(-self._partial.size // BLOCK)
        if whole > self._recorded:
            self._partial.record(self._recorded, whole)
            self._recorded = whole
