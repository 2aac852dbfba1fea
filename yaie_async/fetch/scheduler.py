"""Which range is asked for next: one scheduler for all files of all models of a Hub.

Plain data, without I/O and without a clock: times are seconds of any monotonic clock, passed in. All methods
are called on one thread, the loop's. A range is held by one worker from `next` until `done` or `give_back`,
through any retries of its own: while it is held it counts as a connection.

The order is: files that are no weights, then the first block of each weight file (its header), then the rest;
within these the model that was handed the fewest ranges; within it the files in the order of their paths, then that
in which they were added, lowest offset first.
"""

from __future__ import annotations

import bisect
import heapq
import math
import statistics
from collections import deque
from collections.abc import Hashable

from yaie_async.fetch.ranges import FetchFile, FileState, ModelState, Range
from yaie_async.store.blockmap import BLOCK

LARGEST = 64 << 20  # of a request: what is thrown away when a signed URL or a peer goes bad is bounded by it
_PER_REQUEST = 32 << 20  # bytes that a model's requests are for on average, at least
GROWTH_SECONDS = 5.0
SLOW_SECONDS = 5.0
_SLOW_SHARE = 1 / 4
_ENOUGH_FOR_MEDIAN = 3


class Scheduler:
    """Hands out ranges to at most `max_connections` workers.

    Attributes:
        width: how many ranges may run at this moment: less than `max_connections` after the server said that it
            was too much.
    """

    def __init__(self, max_connections: int, *, verify: bool) -> None:
        self.width: int = max_connections
        self._max = max_connections
        self._verify = verify
        self._files: dict[Hashable, FileState] = {}
        self._models: dict[Hashable, ModelState] = {}
        self._running: set[Range] = set()
        self._added = 0
        self._handed = 0  # the least `handed` of a waiting model at the last range: where a newcomer begins
        self._finished: deque[tuple[float, float]] = deque(maxlen=max_connections)  # when, and bytes per second
        self._throttled_at = -math.inf
        self._grown_at = -math.inf

    def add(self, file: FetchFile) -> None:
        """Queue what is missing of a file. An empty or finished one is complete at once (`front`)."""
        if file.key in self._files:
            msg = f"{file.key!r} is here already"
            raise ValueError(msg)
        model = self._models.setdefault(file.model, ModelState())
        self._added += 1
        state = FileState(file, model, self._added)
        self._files[file.key] = state
        model.files += 1
        model.queue(state.missing)
        model.small += not file.weights
        self._enqueue(state)

    def remove(self, key: Hashable) -> list[Range]:
        """Forget a file that is finished, failed or unwanted. Return its running ranges, to be interrupted.

        Those count as connections until they are given back.
        """
        state = self._files.pop(key)
        self._dequeue(state)
        state.model.queue(-state.missing)
        state.model.files -= 1
        if not state.model.files:
            del self._models[state.file.model]
        return list(state.running)

    def next(self, now: float) -> Range | None:
        """Hand out the next range, or None while there is none to be had. Time alone may change that (`throttled`)."""
        self._grow(now)
        if len(self._running) >= self.width:
            return None
        candidates = [one for model in self._models.values() if (one := self._first(model)) is not None]
        if not candidates:
            return None
        self._handed = max(self._handed, min(one.model.handed for one in candidates))
        state = min(candidates, key=lambda one: (one.rank[0], one.model.handed, one.order))
        self._dequeue(state)
        start, stop = state.cut(self._request_size(state.model))
        self._enqueue(state)
        state.model.left -= stop - start
        state.model.handed += 1
        state.model.requests += 1
        handed_out = Range(state.file, start, stop, start, state, now)
        state.running.add(handed_out)
        self._running.add(handed_out)
        return handed_out

    def progress(self, of: Range, position: int, now: float) -> None:
        """Everything of the range up to `position` (in the file) is written."""
        if not of.start <= position <= of.stop:
            msg = f"{position} is outside of {of}"
            raise ValueError(msg)
        of.position = max(of.position, position)
        if of.mark is None and position > of.start:
            of.mark = now, position  # from its first bytes on: connecting is not slow, it has a time limit

    def restart(self, of: Range) -> None:
        """Its worker has to ask again: what passes until bytes come again is no slowness."""
        of.mark = of.slow_since = None

    def done(self, of: Range, now: float) -> None:
        """Everything of the range is written."""
        of.position = of.stop
        self._take_back(of)
        heapq.heappush(of.state.finished, of.stop)
        if now > of.issued:
            self._finished.append((now, (of.stop - of.start) / (now - of.issued)))

    def give_back(self, of: Range, now: float) -> None:
        """The range ended early: what is not written of it is queued again.

        From the very byte where it stands, not from the block's start: a peer that closes every connection
        before 4 MiB would else never finish a block.
        """
        state = of.state
        if of.position == of.stop:
            self.done(of, now)
            return
        self._take_back(of)
        if self._files.get(state.file.key) is state:
            self._dequeue(state)
            heapq.heappush(state.gaps, (of.position, of.stop))
            self._enqueue(state)
            state.model.left += of.stop - of.position
            state.model.requests -= 1  # that it has to be asked for again is not by our choice

    def front(self, key: Hashable) -> int:
        """Up to where the file is written without a gap: its size, once it is complete."""
        return self._files[key].front

    def verified(self, key: Hashable, offset: int) -> None:
        """The file's digest has read it up to `offset`. Files that are hashed late are fetched late."""
        self._files[key].verified = max(self._files[key].verified, offset)

    def throttled(self, sent: float, now: float) -> None:
        """A request that was sent at `sent` was answered 429 or 503: halve the width, then grow by one per 5 s."""
        self._grow(now)
        if sent > self._throttled_at:  # else it belongs to the crowd that was halved already
            self.width = max(1, self.width // 2)
            self._throttled_at = self._grown_at = now

    def slow(self, now: float) -> list[Range]:
        """Ranges to interrupt and give back. To be called about once a second.

        They were under a quarter of the median rate for 5 s. The median is over the ranges that run and those
        that finished meanwhile: a slow one soon runs alone, as the others may not get far ahead of it. Older
        ones don't count, or a link that has become slow would have all its ranges dropped again and again.
        Ranges without a byte yet count neither way.
        """
        rates = {one: rate for one in self._running if (rate := one.rate(now)) is not None}
        for one, rate in rates.items():
            finished = [speed for at, speed in self._finished if at >= one.issued]
            one.note(now, slow=rate < _slow_limit([*rates.values(), *finished]))
        return [one for one in rates if one.slow_since is not None and now - one.slow_since >= SLOW_SECONDS]

    def _first(self, model: ModelState) -> FileState | None:
        """The file that the model would have fetched next: the first that is not too far ahead of its digest."""
        for state in model.waiting:
            if not self._verify:
                state.verified = state.front
            # Those that run are not counted: equal connections end their ranges at the same moment, and would
            # then wait for the digest, all of them (8 connections idled a quarter of their time).
            if state.finished_ahead() < self._max:
                return state
        return None

    def _request_size(self, model: ModelState) -> int:
        # What is left ÷ (2 × connections), where each connection is on average busy with another half of such
        # a range: those halves are in the 1.5, not in `left`. They come and go by chance, and with them two
        # equal models would be cut into different numbers of ranges.
        share = int(model.left / (1.5 * self._max))
        # More where the requests would else be more than one for 32 MiB and one for each connection.
        requests = -(-model.queued // _PER_REQUEST) + self._max + model.small - model.requests
        return min(max(share, -(-model.left // max(1, requests)), BLOCK), LARGEST)

    def _enqueue(self, state: FileState) -> None:
        if not state.gaps:
            return
        model = state.model
        if not model.waiting:
            # It had nothing to ask for: it has no claim to the ranges that others got meanwhile.
            model.handed = max(model.handed, self._handed)
        bisect.insort(model.waiting, state, key=lambda one: one.rank)

    def _dequeue(self, state: FileState) -> None:
        if state.gaps:
            del state.model.waiting[bisect.bisect_left(state.model.waiting, state.rank, key=lambda one: one.rank)]

    def _take_back(self, of: Range) -> None:
        self._running.remove(of)
        of.state.running.remove(of)

    def _grow(self, now: float) -> None:
        while self.width < self._max and now >= self._grown_at + GROWTH_SECONDS:
            self.width += 1
            self._grown_at += GROWTH_SECONDS


def _slow_limit(rates: list[float]) -> float:
    return statistics.median(rates) * _SLOW_SHARE if len(rates) >= _ENOUGH_FOR_MEDIAN else 0
