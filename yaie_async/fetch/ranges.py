"""A file that is being fetched: what is missing, which ranges of it run, how far it is verified. Plain data."""

from __future__ import annotations

import heapq
import re
from collections.abc import Hashable
from dataclasses import dataclass, field

from yaie_async.store.blockmap import BLOCK, block_count

_RATE_SECONDS = 1.0  # over how long a rate is measured, at least where the range runs that long


@dataclass(frozen=True, slots=True)
class FetchFile:
    """A file to be fetched.

    Attributes:
        key: names it in all calls.
        model: whose it is: models share the connections equally.
        size: in bytes.
        weights: a weight file: after all small files, header first.
        done: a byte for each 4 MiB block, 0 where it is missing (as `Partial.blocks`); empty: all are missing.
        whole: one range for all that is missing, for servers that know no ranges.
        begun: of missing blocks the beginnings that are written, as (start, stop).
        path: in the repository. A model's files are fetched in the order of their paths, since a build reads its
            shards in that order: what is cast as it lands would else be left to the end.
    """

    key: Hashable
    model: Hashable
    size: int
    weights: bool = True
    done: bytes = b""
    whole: bool = False
    begun: tuple[tuple[int, int], ...] = ()
    path: str = ""


@dataclass(eq=False, slots=True)
class Range:
    """Bytes `start` to `stop` (not included) of a file, for one request. Only the scheduler changes it.

    Attributes:
        file: whose bytes.
        start: where it was handed out from. Not always at a block's start: see `Scheduler.give_back`.
        stop: at the end of a block or of the file.
        position: up to where the bytes are written.
    """

    file: FetchFile
    start: int
    stop: int
    position: int
    state: FileState = field(repr=False)
    issued: float = field(repr=False)
    mark: tuple[float, int] | None = field(default=None, repr=False)  # from when and where its rate is measured
    slow_since: float | None = field(default=None, repr=False)

    def rate(self, now: float) -> float | None:
        """Bytes per second since the mark."""
        if self.mark is None or now <= self.mark[0]:
            return None
        return (self.position - self.mark[1]) / (now - self.mark[0])

    def note(self, now: float, *, slow: bool) -> None:
        """Remember since when it has been slow at every look; begin a new measurement where one is complete."""
        assert self.mark is not None
        if not slow:
            self.slow_since = None
        elif self.slow_since is None:
            self.slow_since = self.mark[0]
        if now - self.mark[0] >= _RATE_SECONDS:
            self.mark = now, self.position


class ModelState:
    """What is left of a model, and what fairness knows about it."""

    def __init__(self) -> None:
        self.files = 0
        self.left: int = 0  # bytes neither there nor handed out
        self.queued: int = 0  # bytes that its files lacked when they were added
        self.small = 0  # of its files: those that are no weights
        self.requests = 0  # ranges handed out and not given back
        self.handed = 0  # ranges so far, and those it was too late for
        self.waiting: list[FileState] = []  # with a gap, sorted by rank

    def queue(self, missing: int) -> None:
        """A file that lacks so many bytes comes; with a minus it goes."""
        self.left += missing
        self.queued += missing


class FileState:
    """What is missing of a file, who fetches what, and how far it is verified."""

    def __init__(self, file: FetchFile, model: ModelState, order: int) -> None:
        self.file = file
        self.model = model
        self.order = order
        self.gaps: list[tuple[int, int]] = _gaps(file)  # a heap of disjoint (start, stop): neither there nor handed out
        self.running: set[Range] = set()
        self.verified = 0
        self.finished: list[int] = []  # a heap: where finished ranges end, those before `verified` dropped late

    @property
    def rank(self) -> tuple[int, str, int]:
        if not self.file.weights:
            return 0, self.file.path, self.order
        return (1 if self._header_is_missing else 2), self.file.path, self.order

    @property
    def missing(self) -> int:
        """Bytes neither there nor handed out."""
        return sum(stop - start for start, stop in self.gaps)

    @property
    def _header_is_missing(self) -> bool:
        return bool(self.gaps) and self.gaps[0][0] < BLOCK

    @property
    def front(self) -> int:
        running = [one.position for one in self.running if one.position < one.stop]
        starts = [start for start, _ in self.gaps[:1]] + running
        return min(starts, default=self.file.size)

    def finished_ahead(self) -> int:
        """Finished ranges between the verified front and the next gap."""
        while self.finished and self.finished[0] <= self.verified:
            heapq.heappop(self.finished)
        gap = self.gaps[0][0]
        return sum(stop <= gap for stop in self.finished)

    def cut(self, nbytes: int) -> tuple[int, int]:
        """Take the next range out of the gaps: whole blocks, or the header alone."""
        start, stop = heapq.heappop(self.gaps)
        while self.gaps and self.gaps[0][0] == stop:  # given back in pieces
            _, stop = heapq.heappop(self.gaps)
        if self.file.whole:
            nbytes = stop - start
        elif self.file.weights and start < BLOCK:
            nbytes = BLOCK - start
        # Counted from the block's start, where the last holder stood in the middle of one.
        end = min(stop, (start // BLOCK + block_count(nbytes)) * BLOCK)
        if end < stop:
            heapq.heappush(self.gaps, (end, stop))
        return start, end


def _gaps(file: FetchFile) -> list[tuple[int, int]]:
    blocks = file.done or bytes(block_count(file.size))
    if len(blocks) != block_count(file.size):
        msg = f"a map of {len(blocks)} blocks for {file}"
        raise ValueError(msg)
    gaps = [(match.start() * BLOCK, min(match.end() * BLOCK, file.size)) for match in re.finditer(rb"\0+", blocks)]
    for written in file.begun:
        gaps = [part for gap in gaps for part in _without(gap, written)]
    return gaps  # in ascending order, which is a heap


def _without(gap: tuple[int, int], written: tuple[int, int]) -> list[tuple[int, int]]:
    (start, stop), (first, last) = gap, written
    if last <= start or stop <= first:
        return [gap]
    return [(a, b) for a, b in ((start, first), (last, stop)) if a < b]
