"""One partial being filled: its ranges, and close behind them its digest, its sync and its owner's sign of life."""

from __future__ import annotations

import re
import time
from functools import partial

import anyio
import anyio.abc
import httpx

from yaie_async.core.manifest import RepoFile
from yaie_async.core.progress import Meter
from yaie_async.core.tasks import task_group
from yaie_async.core.threads import run_owned
from yaie_async.core.trace import span
from yaie_async.fetch.digest import Digest
from yaie_async.fetch.downloader import Downloader, Running
from yaie_async.fetch.failures import gave_up
from yaie_async.fetch.location import Location, OtherBytesError
from yaie_async.fetch.pace import SLOWEST, Pace, least
from yaie_async.fetch.ranges import FetchFile, Range
from yaie_async.fetch.retry import GaveUpError, Kind, RetryPolicy, TransientError, with_retries
from yaie_async.fetch.sink import FullError, RangeSink
from yaie_async.fetch.stop import Stop
from yaie_async.fetch.transport import drainable
from yaie_async.store.blockmap import BLOCK
from yaie_async.store.partials import Ownership, Partial

# Bytes: hashed at most in one go, and put on the disk as soon as this much is new. Syncing all of a file at its
# end costs a second a GB.
_HASH_MOST = 64 * 1024 * 1024
_SYNC_STEP = 64 * 1024 * 1024
_TOUCH_SECONDS = 5.0
_WRITE = 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class LostError(Exception):
    """Another process owns the partial now."""


class PrunedError(Exception):
    """The partial's files were removed; its descriptor still has the bytes."""


class RangesIgnoredError(Exception):
    """The server sends the whole file whatever range is asked for."""


class Assembly:
    """Fills one partial until it is whole.

    Attributes:
        counted: bytes that the meter has counted for it.
        begun: where the blocks begin of which the beginning is written, and up to where. The map knows whole blocks
            only; this is for who goes on with the same bytes in another partial.
        retries: requests that were made again after a failure.
    """

    def __init__(
        self,
        downloader: Downloader,
        location: Location,
        policy: RetryPolicy,
        partial_file: Partial,
        file: RepoFile,
        *,
        model: str,
        weights: bool,
        verify: bool,
        meter: Meter,
        begun: dict[int, int],
    ) -> None:
        self._downloader = downloader
        self._location = location
        self._policy = policy
        self._partial = partial_file
        self._file = file
        self._model = model
        self._weights = weights
        self._digest = Digest(partial_file.etag, partial_file.size, check=verify)
        self._meter = meter
        self._key = object()
        self._moved = anyio.Event()
        self._whole = False
        self._front = 0
        self.begun = begun
        self.counted: int = 0
        self.retries: int = 0

    async def run(self, *, whole: bool) -> str:
        """Fetch what is missing; return the digest of all of it (the etag itself, where nothing is verified).

        `whole` asks for everything by one request without a range, for servers that know none.

        **Cancellation:** every thread has ended; the partial is open, and right as far as it goes.

        **Raises:** LostError, PrunedError, RangesIgnoredError, OtherBytesError; LoaderError.
        """
        self._whole = whole
        if whole:
            self.begun.clear()
        done = b"" if whole else self._partial.blocks
        begun = tuple(self.begun.items())
        held = 0 if whole else self._partial.recorded_bytes + sum(stop - start for start, stop in begun)
        self.counted = held
        self._meter.held(held)
        size, path = self._partial.size, self._file.path
        file = FetchFile(self._key, self._model, size, self._weights, done, whole, begun, path)
        try:
            async with task_group() as group:
                self._downloader.enter(file, start=partial(self._start, group), moved=self._on_moved)
                self._on_moved()  # it may be there already
                group.start_soon(self._keep_alive)
                group.start_soon(self._sync_behind)
                await self._verify_behind()
                group.cancel_scope.cancel()
        finally:
            self._downloader.leave(self._key)
        return self._digest.result()

    def _on_moved(self) -> None:
        self._front = self._downloader.front(self._key)
        self._moved.set()
        self._moved = anyio.Event()

    def _start(self, group: anyio.abc.TaskGroup, of: Range) -> None:
        group.start_soon(self._fetch, of)

    async def _fetch(self, of: Range) -> None:
        running = Running(RangeSink(self._partial, of.start, of.stop, self._count, self._downloader))
        self._downloader.started(of, running)
        try:
            with running.scope:
                await with_retries(
                    self._policy,
                    partial(self._attempt, of, running.sink),
                    about=self._location.asked.facts,
                    progress=lambda: running.sink.position,
                    least=max(1, least(self._location.timeout)),
                )
        except BaseException as error:
            # Before the range is given back: or this file, which is ending, would be handed it again.
            self._downloader.leave(self._key)
            if isinstance(error, GaveUpError):
                raise gave_up(error, self._location.asked) from error.__cause__
            raise
        finally:
            self._note(of.start, running.sink.position)
            self._downloader.ended(of)

    def _note(self, start: int, position: int) -> None:
        """A range that was asked for from `start` has come up to `position`."""
        self.begun.pop(start // BLOCK * BLOCK, None)
        if position % BLOCK and position < self._partial.size:
            self.begun[position // BLOCK * BLOCK] = position

    def _count(self, size: int) -> None:
        self.counted += size  # off by a read where two threads meet: it only ever corrects a display
        self._meter.add(size)

    async def _attempt(self, of: Range, sink: RangeSink) -> None:
        self._downloader.restarted(of)
        start = 0 if self._whole else sink.position
        ranged = (start, sink.stop) != (0, self._partial.size)
        sent = time.monotonic()
        try:
            async with self._location.get(f"bytes={start}-{sink.stop - 1}" if ranged else None) as response:
                sink.begin(self._offset(response, start, sink.stop, ranged=ranged))
                stream = drainable(response)
                track = stream.track if stream else f"body of {self._file.path} from byte {start}"
                with span(track, "body", model=self._model, file=self._file.path, start=start, stop=sink.stop):
                    if stream is not None:
                        await stream.drain_into(sink)
                    else:
                        await _copy(
                            response, sink, None if ranged else self._partial.size, Pace(self._location.timeout)
                        )
        except FullError:
            return
        except TransientError as error:
            if error.status in (429, 503):
                self._downloader.throttled(sent)
            if sink.position < sink.stop:
                self.retries += 1
                raise
        if sink.position < sink.stop:
            self.retries += 1
            raise self._transient(f"ended at byte {sink.position:,} of {sink.stop:,}", "truncated")

    def _offset(self, response: httpx.Response, start: int, stop: int, *, ranged: bool) -> int:
        """Where in the file the body begins, once it is sure to be what was asked for."""
        size, headers = self._partial.size, response.headers
        encoded = headers.get("content-encoding", "identity") != "identity"
        if headers.get("content-type", "").startswith("text/html") and not self._file.path.endswith(".html"):
            # Of a captive portal, most likely: it says nothing about the bytes that are here.
            raise self._transient("the server sends an HTML page instead (is there a log-in page?)", "range")
        if response.status_code == 206:
            told = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            if told and told[3] not in ("*", str(size)):
                raise OtherBytesError(size, int(told[3]))
            if encoded:
                raise RangesIgnoredError
            if told is None or (int(told[1]), int(told[2])) != (start, stop - 1):
                text = headers.get("content-range", "a part that it does not name")
                raise self._transient(f"asked for bytes {start}-{stop - 1}, the server sends {text}", "range")
            return start
        if ranged:
            raise RangesIgnoredError
        length = headers.get("content-length")
        if length is not None and not encoded and int(length) != size:
            raise OtherBytesError(size, int(length))
        return 0

    def _transient(self, text: str, kind: Kind) -> TransientError:
        return TransientError(f"{self._file.path} of {self._model}: {text}", kind=kind)

    async def _verify_behind(self) -> None:
        """Hash what lies behind the front while the rest arrives; return when all of it is hashed."""
        read = 0
        while True:
            moved = self._moved
            if self._ready() > read:
                read = await self._hash(read) if self._digest.reads else self._ready()
                self._downloader.verified(self._key, read)
            elif read == self._partial.size:
                return
            else:
                await moved.wait()

    def _ready(self) -> int:
        """Up to where there is something to hash: by whole blocks. Asked in the thread, too."""
        return self._front if self._front == self._partial.size else self._front // BLOCK * BLOCK

    async def _hash(self, start: int) -> int:
        """Hash from `start` as far as the front is by then, within bounds; return where it ended."""
        cancelled = Stop()
        most = start + _HASH_MOST
        read = partial(self._digest.read, self._partial.fd, start, lambda: min(self._ready(), most), cancelled.is_set)
        with span(f"verify {self._file.path}", "verify", model=self._model, start=start):
            return await run_owned(read, interrupt=cancelled.set, name="verify")

    async def _sync_behind(self) -> None:
        synced = self.counted
        while True:
            moved = self._moved  # before the look: bytes may come while the disk is at work
            if self.counted - synced >= _SYNC_STEP:
                synced = self.counted
                await run_owned(self._partial.sync, name="sync")
            else:
                await moved.wait()

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(_TOUCH_SECONDS)
            ownership = await run_owned(self._partial.touch, name="touch")
            if ownership is Ownership.LOST:
                raise LostError
            if ownership is Ownership.PRUNED:
                raise PrunedError


async def _copy(response: httpx.Response, sink: RangeSink, most: int | None, pace: Pace) -> None:
    """httpx's own way of reading, for bodies of unknown length, encoded ones, proxies and a user's client."""
    buffer = bytearray()
    stopped = Stop()

    async def write() -> None:
        data = memoryview(bytes(buffer))
        buffer.clear()
        await run_owned(lambda: sink.write(data, stopped), interrupt=stopped.set, name="write")

    received = 0
    begun = time.monotonic()
    try:
        async for chunk in response.aiter_bytes():
            if pace.too_slow(len(chunk), time.monotonic() - begun):
                raise httpx.ReadTimeout(f"under {SLOWEST} bytes a second")
            received += len(chunk)
            if most is not None and received > most:
                raise OtherBytesError(most, f"more than {most}")
            buffer += chunk
            if len(buffer) >= _WRITE:
                await write()
            begun = time.monotonic()
    finally:
        if buffer:
            await write()  # what came before a failure is not asked for again
