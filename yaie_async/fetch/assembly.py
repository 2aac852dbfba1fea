"""Fills one partial: fetches its ranges, hashes and syncs close behind them, and keeps other processes off it."""

import time
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.abc

from yaie_async.core.errors import StalledError
from yaie_async.core.progress import Meter
from yaie_async.core.stall import current_watch
from yaie_async.core.tasks import task_group
from yaie_async.core.threads import run_owned
from yaie_async.core.trace import span
from yaie_async.fetch.body import RangesIgnoredError, read_range
from yaie_async.fetch.digest import Digest
from yaie_async.fetch.failures import TransientError
from yaie_async.fetch.location import Location, OtherBytesError, StartOverError
from yaie_async.fetch.pace import least
from yaie_async.fetch.ranges import FetchFile, Range
from yaie_async.fetch.retry import retried
from yaie_async.fetch.session import Session
from yaie_async.fetch.stop import Stop
from yaie_async.store.blockmap import BLOCK
from yaie_async.store.diskio import write_all
from yaie_async.store.os_errors import cache_errors
from yaie_async.store.partials import Ownership, Partial

# Bytes: the most that is hashed in one go, and how many new bytes are synced to the disk at once. To sync a whole file
# at its end takes a second a GB.
_HASH_MOST = 64 * 1024 * 1024
_SYNC_STEP = 64 * 1024 * 1024
_TOUCH_SECONDS = 5.0


class LostError(StartOverError):
    """Raised when another process owns the partial now."""


class WrongDigestError(OtherBytesError):
    """Raised when all bytes are there and their digest is not the etag."""


class SequentialError(RangesIgnoredError):
    """Raised when the server sends a range only after it has read all bytes before it, as a cache without slices does.

    The sign is that requests from some place of the file on bring no byte, while the front of the file moves. The whole
    file by one request then comes as soon as the next byte could.
    """


class PrunedError(StartOverError):
    """Raised when the partial's files were removed. Its open descriptor still has the bytes."""


@dataclass(eq=False)
class Assembly:
    """Fills one partial until it is whole."""

    session: Session
    location: Location
    file: Partial
    meter: Meter
    weights: bool
    retries: int = field(init=False, default=0)  # number of failed requests

    def __post_init__(self) -> None:
        self._downloader = self.session.downloader
        self._digest = Digest(self.file.etag, self.file.size, check=bool(self.session.verify))
        self._key = object()
        self._group: anyio.abc.TaskGroup
        self._front = self._seen = 0
        self._moved = anyio.Event()
        self._counted = 0  # bytes that the meter has counted for it
        self._requests: dict[Range, int] = {}  # where the running request of each range began
        self._begun = 0  # the front at the start
        self._reached = 0  # the furthest beginning of a request that has brought bytes

    async def run(self, *, whole: bool) -> None:
        """Fetch what is missing and check the digest of all of it.

        `whole` fetches everything by one request without a range, for servers that ignore ranges.

        **Cancellation:** every thread has ended; the partial is open, and right as far as it goes.

        **Raises:** a StartOverError, after the meter has taken back what it counted; LoaderError.
        """
        etag, size = self.file.etag, self.file.size
        done, begun = (b"", ()) if whole else (self.file.blocks, self.file.begun)
        self._counted = 0 if whole else self.file.recorded_bytes
        self.meter.held(self._counted)
        asked = self.location.asked
        wanted = FetchFile(self._key, asked.model, size, self.weights, done, whole, begun, asked.file or "")
        try:
            async with task_group() as self._group:
                try:
                    self._downloader.enter(wanted, owner=self)
                    self._begun = self._downloader.front(self._key)
                    self.moved()  # the file may be complete already
                    self._group.start_soon(self._keep_alive)
                    self._group.start_soon(self._sync_behind)
                    await self._verify_behind()
                    self._group.cancel_scope.cancel()
                finally:
                    # Inside the group: once it has closed, it takes no more ranges, and to be given one is an error.
                    self._downloader.leave(self._key)
            if (found := self._digest.result()) != etag:
                raise WrongDigestError(etag, found)
        except StartOverError:
            self.meter.held(-self._counted)
            raise

    def moved(self) -> None:
        """See how far the file is; the downloader calls this several times a second."""
        front, counted = self._downloader.front(self._key), self._counted
        if (front, counted) != (self._front, self._seen):
            self._front, self._seen = front, counted
            self._moved.set()
            self._moved = anyio.Event()

    def start(self, of: Range) -> None:
        """Fetch a range in a task of its own."""
        self._group.start_soon(self._fetch, of)

    async def _fetch(self, of: Range) -> None:
        current_watch.set(self.meter.stall)  # the task may have been started by another load's
        of.open(self._put, self._downloader.largest_read)
        try:
            with of.scope:
                await retried(
                    self.session.policy,
                    partial(self._attempt, of),
                    self.location.asked,
                    progress=lambda: of.position,
                    least=max(1, least(self.location.timeout)),
                )
        except BaseException as error:
            trial = of.state.is_trial(of) and self._downloader.front(self._key) > self._begun
            # Before the range is given back: a file that is ending would get the range again.
            self._downloader.leave(self._key)
            if isinstance(error, StalledError) and of.position == of.start > 0 and (trial or not self._furthest()):
                raise SequentialError from error  # the last resort, for the rest of a file that was begun earlier
            raise
        finally:
            self._downloader.ended(of)

    async def _attempt(self, of: Range) -> None:
        of.restart()
        sent, begin, front = time.monotonic(), of.position, self._downloader.front(self._key)
        self._requests[of] = begin
        try:
            await read_range(self.location, of)
        except TransientError as error:
            self.retries += 1
            if error.status in (429, 503):
                self._downloader.throttled(sent)
            moved = self._downloader.front(self._key) > front
            trial = of.state.is_trial(of)
            if error.kind == "stall" and of.position == begin and moved and (trial or self._is_sequential(begin)):
                raise SequentialError from error
            if trial and error.status is not None:
                of.state.end_trial()  # that is an answer, if a bad one
            raise
        finally:
            self._reached = self._furthest()
            del self._requests[of]

    def _furthest(self) -> int:
        return max([self._reached, *(begin for one, begin in self._requests.items() if one.position > begin)])

    def _is_sequential(self, silent: int) -> bool:
        """Whether all requests that begin from here on are silent: two at least, if a nearer one has brought bytes."""
        nearest = self._furthest()
        others = sum(begin > nearest for begin in self._requests.values())
        return silent > nearest and (not nearest or others > 1)

    def _put(self, of: Range, data: memoryview) -> float:
        """Write the next bytes of a range and record them, in the thread that read them.

        Return the seconds to wait for the rate limit.
        """
        with cache_errors(self.file.path, needed=of.stop - of.position):
            write_all(self.file.fd, data, of.position)
        self.file.extend(of.position, of.position + len(data))
        self._counted += len(data)  # two threads may lose one of these, which only makes a display a little wrong
        wait = self._downloader.wait_after(len(data))
        self.meter.add(len(data), held=wait)
        return wait

    async def _verify_behind(self) -> None:
        """Hash what is behind the front while the rest arrives; return when all of it is hashed."""
        read = 0
        while True:
            moved = self._moved
            if self._ready() > read:
                read = await self._hash(read) if self._digest.reads else self._ready()
                self._downloader.verified(self._key, read)
            elif read == self.file.size:
                return
            else:
                await moved.wait()

    def _ready(self) -> int:
        """How far the file can be hashed: in whole blocks. Also called in the thread that hashes."""
        return self._front if self._front == self.file.size else self._front // BLOCK * BLOCK

    async def _hash(self, start: int) -> int:
        """Hash from `start` as far as the front is by then, within bounds; return where it ended."""
        cancelled = Stop()
        most = start + _HASH_MOST

        def read() -> int:
            with cache_errors(self.file.path, reading=True):
                return self._digest.read(self.file.fd, start, lambda: min(self._ready(), most), cancelled.is_set)

        asked = self.location.asked
        with span(f"verify {asked.file}", "verify", model=asked.model, start=start):
            return await run_owned(read, interrupt=cancelled.set, name="verify")

    async def _sync_behind(self) -> None:
        synced = self._counted
        while True:
            moved = self._moved  # before the comparison, because bytes may arrive while the disk is busy
            if self._counted - synced >= _SYNC_STEP:
                synced = self._counted
                await run_owned(self.file.sync, name="sync")
            else:
                await moved.wait()

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(_TOUCH_SECONDS)
            ownership = await run_owned(self.file.touch, name="touch")
            if ownership is Ownership.LOST:
                raise LostError
            if ownership is Ownership.PRUNED:
                raise PrunedError
