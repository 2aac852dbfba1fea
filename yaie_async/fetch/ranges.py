"""A file that is being fetched, and the ranges cut from it: what is missing, what is running, what is verified."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import anyio

from yaie_async.fetch.stop import Stop
from yaie_async.store.blockmap import BLOCK, block_count

_RATE_SECONDS = 1.0  # a rate is measured over at least this long, where the range runs that long


class FullError(Exception):
    """Raised when a body is longer than its range, after the range is written. Never leaves the fetch layer."""


@dataclass(frozen=True, slots=True)
class FetchFile:
    """A file to be fetched."""

    key: Hashable  # identifies the file in all calls
    model: Hashable  # models share the connections equally
    size: int  # in bytes
    weights: bool = True  # weight files come after all small files, their headers first
    done: bytes = b""  # one byte for each 4 MiB block, 0 where it is missing (as `Partial.blocks`); empty: all are
    whole: bool = False  # fetch everything that is missing as one range, for servers that ignore ranges
    begun: tuple[tuple[int, int], ...] = ()  # the written beginnings of missing blocks, as (start, stop)
    path: str = ""  # a model's files are fetched in this order, because a build reads the shards in it


@dataclass(eq=False, slots=True)
class Range:
    """Bytes `start` to `stop` (not included) of a file, fetched by one request at a time.

    Three parties share it without a lock. The thread that reads a body is the only one to move `position`: forward,
    and after the bytes are in the file. The scheduler reads `position` at any moment on the loop's thread: an old
    value is only too low, which is safe. The loop cancels `scope` to interrupt the fetch. The range is given back
    after its reading thread has ended, when `position` is final.
    """

    file: FetchFile
    start: int  # not always the start of a block: see `Scheduler.give_back`
    stop: int  # the end of a block or of the file
    state: FileState = field(repr=False)
    issued: float = field(repr=False)
    position: int = field(init=False)  # everything from `start` to here is written
    scope: anyio.CancelScope = field(init=False, repr=False)  # cancelled to interrupt the fetch; set by `open`
    largest: int = field(init=False, repr=False)  # the most bytes that one read should ask for; set by `open`
    slow_since: float | None = field(init=False, default=None, repr=False)
    _put: Callable[[Range, memoryview], float] = field(init=False, repr=False)
    _skip: int = field(init=False, default=0, repr=False)
    _measured: tuple[float | None, int] = field(init=False, repr=False)  # since when (None: no byte yet) and where

    def __post_init__(self) -> None:
        self.position = self.start
        self.restart()

    # In the task that fetches it.

    def open(self, put: Callable[[Range, memoryview], float], largest: int) -> None:
        """Get ready to be fetched. `put` writes bytes at `position` and returns the seconds to wait after them."""
        self.scope = anyio.CancelScope()
        self._put = put
        self.largest = largest

    def restart(self) -> None:
        """A request is about to be made. The time until its first byte does not count as slow."""
        self._measured = None, self.position
        self.slow_since = None

    def begin(self, offset: int) -> None:
        """The next body begins at `offset` of the file. Its bytes before `position` are skipped."""
        self._skip = self.position - offset

    # In the thread that reads a body.

    def write(self, data: memoryview, stopped: Stop) -> None:
        """Write the next bytes of the body. The wait that the rate limit asks for ends when `stopped` is set.

        Raises FullError when the body goes on behind `stop`, so that an endless body is not read to its end.
        """
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        data = data[skipped:]
        wanted = data[: self.stop - self.position]
        if wanted:
            seconds = self._put(self, wanted)
            self.advance(self.position + len(wanted))
            stopped.wait(seconds)
        if len(wanted) < len(data):
            raise FullError

    def advance(self, position: int) -> None:
        """Record that everything up to `position` is written, which must be within what is left of the range."""
        if not self.position <= position <= self.stop:
            msg = f"{position} is outside of {self}"
            raise ValueError(msg)
        self.position = position

    # In the scheduler.

    def look(self, now: float) -> None:
        """Start measuring the rate once the first bytes of the current request are written."""
        since, begin = self._measured
        position = self.position
        if since is None and position > begin:
            self._measured = now, position

    def rate(self, now: float) -> float | None:
        """Bytes per second of the current measurement; None before the first bytes."""
        since, begin = self._measured
        return (self.position - begin) / (now - since) if since is not None and now > since else None

    def judge(self, now: float, *, slow: bool) -> None:
        """Note since when every rate was slow, and start the next measurement if this one was long enough."""
        since, _ = self._measured
        assert since is not None
        if not slow:
            self.slow_since = None
        elif self.slow_since is None:
            self.slow_since = since
        if now - since >= _RATE_SECONDS:
            self._measured = now, self.position


class ModelState:
    """What is left of a model, and its share of the connections so far."""

    def __init__(self) -> None:
        self.files = 0
        self.left: int = 0  # bytes neither written nor handed out
        self.queued: int = 0  # bytes that its files lacked when they were added
        self.small = 0  # number of files that are not weights
        self.requests = 0  # ranges handed out and not given back
        self.handed = 0  # ranges handed out, plus those that it has lost its claim to
        self.waiting: list[FileState] = []  # files with a gap, sorted by rank

    def queue(self, missing: int) -> None:
        """Add a file that lacks `missing` bytes; a negative number removes one."""
        self.left += missing
        self.queued += missing


class FileState:
    """What is missing of a file, which ranges of it are running, and how far it is verified."""

    def __init__(self, file: FetchFile, model: ModelState, order: int) -> None:
        self.file = file
        self.model = model
        self.order = order
        # A heap of disjoint (start, stop): neither written nor handed out.
        self.gaps: list[tuple[int, int]] = _gaps(file)
        self.running: set[Range] = set()
        self.verified = 0
        self._last = (file.size - 1) // BLOCK * BLOCK  # where its last block begins
        # Whether bytes of the last block have come, by this fetch or an earlier one. Small files are not worth it.
        missing = any(start <= self._last < stop for start, stop in self.gaps)
        self._proved = file.whole or not (file.weights and missing)
        self.finished: list[int] = []  # a heap of the ends of finished ranges; those before `verified` are dropped late

    @property
    def rank(self) -> tuple[int, str, int]:
        kind = 0
        if self.file.weights:
            header_is_missing = bool(self.gaps) and self.gaps[0][0] < BLOCK
            kind = 1 if header_is_missing else 2
        return kind, self.file.path, self.order

    @property
    def is_on_trial(self) -> bool:
        """Whether its last block is requested, and has to bring a byte before anything else is."""
        return not self._proved and any(one.start == self._last for one in self.running)

    def see(self, one: Range) -> None:
        """Learn from one of its ranges, running or ended, whether the server sends what is ahead of the front."""
        if one.start == self._last and one.position > one.start:
            self.end_trial()

    def end_trial(self) -> None:
        """Go on with the rest of it: the server has answered for the last block."""
        self._proved = True

    def is_trial(self, one: Range) -> bool:
        """Whether this range is the last block's, which has not brought a byte."""
        return self.is_on_trial and one.start == self._last

    @property
    def missing(self) -> int:
        """Bytes neither written nor handed out."""
        return sum(stop - start for start, stop in self.gaps)

    @property
    def front(self) -> int:
        """Everything before this byte is written. It never goes back while positions move."""
        # Each position is read once: a range may reach its end between two reads.
        running = [position for one in self.running if (position := one.position) < one.stop]
        starts = [start for start, _ in self.gaps[:1]] + running
        return min(starts, default=self.file.size)

    def finished_ahead(self) -> int:
        """Number of finished ranges between the verified front and the next gap."""
        while self.finished and self.finished[0] <= self.verified:
            heapq.heappop(self.finished)
        gap = self.gaps[0][0]
        return sum(stop <= gap for stop in self.finished)

    def cut(self, nbytes: int) -> tuple[int, int]:
        """Take the next range out of the gaps: whole blocks, the header alone, or the last block while on trial."""
        if self.running and not self._proved:
            return self._cut_last()
        start, stop = heapq.heappop(self.gaps)
        while self.gaps and self.gaps[0][0] == stop:  # neighbours that were given back one by one
            _, stop = heapq.heappop(self.gaps)
        if self.file.whole:
            nbytes = stop - start
        elif self.file.weights and start < BLOCK:
            nbytes = BLOCK - start
        # Counted from the start of the block, because a range that was given back may begin in the middle of one.
        end = min(stop, (start // BLOCK + block_count(nbytes)) * BLOCK)
        if end < stop:
            heapq.heappush(self.gaps, (end, stop))
        return start, end

    def _cut_last(self) -> tuple[int, int]:
        start, stop = max(self.gaps)
        self.gaps.remove((start, stop))
        if start < self._last:
            self.gaps.append((start, self._last))
        heapq.heapify(self.gaps)
        return max(start, self._last), stop


def _gaps(file: FetchFile) -> list[tuple[int, int]]:
    blocks = file.done or bytes(block_count(file.size))
    if len(blocks) != block_count(file.size):
        msg = f"a map of {len(blocks)} blocks for {file}"
        raise ValueError(msg)
    gaps = [(match.start() * BLOCK, min(match.end() * BLOCK, file.size)) for match in re.finditer(rb"\0+", blocks)]
    for written in file.begun:
        gaps = [part for gap in gaps for part in _without(gap, written)]
    return gaps  # in ascending order, which is a valid heap


def _without(gap: tuple[int, int], written: tuple[int, int]) -> list[tuple[int, int]]:
    (start, stop), (first, last) = gap, written
    if last <= start or stop <= first:
        return [gap]
    return [(a, b) for a, b in ((start, first), (last, stop)) if a < b]
