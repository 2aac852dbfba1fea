"""The pump of a Hub: hands the scheduler's ranges to the files that they belong to, and keeps its clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import anyio

from yaie_async.fetch.ranges import FetchFile, Range
from yaie_async.fetch.rate_limit import TokenBucket
from yaie_async.fetch.scheduler import Scheduler
from yaie_async.fetch.sink import RangeSink
from yaie_async.store.blockmap import BLOCK

# Seconds. The scheduler looks at rates about once a second, and verification follows the front this closely.
_TICK = 0.1
_SLOW_TICK = 1.0


@dataclass(slots=True)
class Running:
    """A range that is being fetched.

    Attributes:
        sink: knows how far it is.
        scope: cancelled to give the range up.
    """

    sink: RangeSink
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


@dataclass(frozen=True, slots=True)
class _Entered:
    """What a file wants to be told."""

    start: Callable[[Range], None]
    moved: Callable[[], None]


class Downloader:
    """All file bodies of one Hub. Everything here is one synchronous step on the loop's thread.

    Attributes:
        largest_read: bytes that one read should ask for at most, to keep within `max_bytes_per_second`.
    """

    def __init__(self, connections: int, *, verify: bool, max_bytes_per_second: float | None) -> None:
        self._bucket = TokenBucket(max_bytes_per_second) if max_bytes_per_second else None
        self.largest_read: int = self._bucket.largest_read(connections) if self._bucket else BLOCK
        self._scheduler = Scheduler(connections, verify=verify)
        self._entered: dict[Hashable, _Entered] = {}
        self._running: dict[Range, Running] = {}
        self._ticked = self._looked = -math.inf

    def enter(self, file: FetchFile, *, start: Callable[[Range], None], moved: Callable[[], None]) -> None:
        """Queue a file. `start` is called for each of its ranges, `moved` whenever its front may have moved."""
        self._scheduler.add(file)
        self._entered[file.key] = _Entered(start, moved)
        self.pump()

    def leave(self, key: Hashable) -> None:
        """Forget a file, finished or not. Its running ranges end by themselves: `started` until `ended`."""
        if self._entered.pop(key, None) is not None:
            self._scheduler.remove(key)
            self.pump()

    def pump(self) -> None:
        """Start as many ranges as may run."""
        while (one := self._scheduler.next(time.monotonic())) is not None:
            self._entered[one.file.key].start(one)

    def started(self, of: Range, running: Running) -> None:
        self._running[of] = running

    def ended(self, of: Range) -> None:
        """A range has ended, wherever it stands: what is missing of it is queued again."""
        now = time.monotonic()
        self._scheduler.progress(of, self._running.pop(of).sink.position, now)
        self._scheduler.give_back(of, now)
        self._tell(of.file.key)
        self.pump()

    def restarted(self, of: Range) -> None:
        """A range asks again after a failure."""
        self._scheduler.restart(of)

    def throttled(self, sent: float) -> None:
        """A request sent at `sent` (monotonic) was answered 429 or 503."""
        self._scheduler.throttled(sent, time.monotonic())

    def wait_after(self, size: int) -> float:
        """Seconds that a thread has to wait after it has read `size` bytes. Called in threads."""
        return self._bucket.take(size, time.monotonic()) if self._bucket else 0.0

    def front(self, key: Hashable) -> int:
        """Up to where a file is written without a gap; 0 for one that has left."""
        return self._scheduler.front(key) if key in self._entered else 0

    def verified(self, key: Hashable, offset: int) -> None:
        """A file's digest has read it up to `offset`."""
        if key in self._entered:
            self._scheduler.verified(key, offset)
            self.pump()

    async def clock(self) -> None:
        """Keep time until cancelled. Every model that is being fetched runs one; together they tick as one."""
        while True:
            await anyio.sleep(_TICK)
            now = time.monotonic()
            if now - self._ticked >= _TICK / 2:
                self._ticked = now
                self._tick(now)

    def _tick(self, now: float) -> None:
        moved = set()
        for one, running in self._running.items():
            if running.sink.position != one.position:
                self._scheduler.progress(one, running.sink.position, now)
                moved.add(one.file.key)
        for key in moved:
            self._tell(key)
        if now - self._looked >= _SLOW_TICK:
            self._looked = now
            for one in self._scheduler.slow(now):
                if one in self._running:
                    self._running[one].scope.cancel()
        self.pump()

    def _tell(self, key: Hashable) -> None:
        entered = self._entered.get(key)
        if entered is not None:
            entered.moved()
