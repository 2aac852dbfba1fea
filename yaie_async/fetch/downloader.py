"""The downloader of a Hub: gives the scheduler's ranges to the files that they belong to, and keeps its clock."""

import math
import time
from collections.abc import Hashable
from typing import Protocol

import anyio

from yaie_async.fetch.ranges import FetchFile, Range
from yaie_async.fetch.rate_limit import TokenBucket
from yaie_async.fetch.scheduler import Scheduler
from yaie_async.store.blockmap import BLOCK

# Seconds. Digests follow the front this closely; slow ranges are looked for once a second.
_TICK = 0.1
_SLOW_TICK = 1.0


class Owner(Protocol):
    """Fetches the ranges of one file. Both methods are one synchronous step on the loop's thread."""

    def start(self, of: Range) -> None:
        """Fetch a range, in a task of its own, and call `Downloader.ended` at its end."""

    def moved(self) -> None:
        """The front of the file may have moved."""


class Downloader:
    """Downloads all file bodies of one Hub. Every method but `clock` is one synchronous step on the loop's thread."""

    def __init__(self, connections: int, *, verify: bool, max_bytes_per_second: float | None) -> None:
        self._bucket = TokenBucket(max_bytes_per_second) if max_bytes_per_second else None
        # The most bytes that one read should ask for, to stay within `max_bytes_per_second`.
        self.largest_read: int = self._bucket.largest_read(connections) if self._bucket else BLOCK
        self._scheduler = Scheduler(connections, verify=verify)
        self._owners: dict[Hashable, Owner] = {}
        self._ticked = self._looked = -math.inf

    def enter(self, file: FetchFile, *, owner: Owner) -> None:
        """Queue a file and start its first ranges."""
        self._scheduler.add(file)
        self._owners[file.key] = owner
        self.pump()

    def leave(self, key: Hashable) -> None:
        """Forget a file, finished or not. Its running ranges count as connections until `ended`."""
        if self._owners.pop(key, None) is not None:
            self._scheduler.remove(key)
            self.pump()

    def pump(self) -> None:
        """Start as many ranges as may run."""
        while (one := self._scheduler.next(time.monotonic())) is not None:
            self._owners[one.file.key].start(one)

    def ended(self, of: Range) -> None:
        """A range has ended, and its reading thread too: what is missing of it is queued again."""
        self._scheduler.give_back(of, time.monotonic())
        self._notify(of.file.key)
        self.pump()

    def throttled(self, sent: float) -> None:
        """A request sent at `sent` (monotonic) was answered 429 or 503."""
        self._scheduler.throttled(sent, time.monotonic())

    def wait_after(self, size: int) -> float:
        """Seconds that a thread has to wait after it has read `size` bytes. Called in threads."""
        return self._bucket.take(size, time.monotonic()) if self._bucket else 0.0

    def front(self, key: Hashable) -> int:
        """Everything before this byte of the file is written; 0 for a file that has left."""
        return self._scheduler.front(key) if key in self._owners else 0

    def verified(self, key: Hashable, offset: int) -> None:
        """A file's digest has read it up to `offset`."""
        if key in self._owners:
            self._scheduler.verified(key, offset)
            self.pump()

    async def clock(self) -> None:
        """Keep time until cancelled. Every model that is being fetched runs one; together they tick as one.

        **Cancellation:** at once; nothing is left behind.

        **Raises:** nothing of its own.
        """
        while True:
            await anyio.sleep(_TICK)
            now = time.monotonic()
            if now - self._ticked < _TICK / 2:
                continue  # another model's clock has ticked
            self._ticked = now
            for key in self._scheduler.look(now):
                self._notify(key)
            if now - self._looked >= _SLOW_TICK:
                self._looked = now
                for one in self._scheduler.slow(now):
                    one.scope.cancel()
            self.pump()

    def _notify(self, key: Hashable) -> None:
        if key in self._owners:
            self._owners[key].moved()
