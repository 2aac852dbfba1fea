"""Decides which range is requested next: one scheduler for all files of all models of a Hub.

It does no I/O and has no clock: times are seconds of any monotonic clock, passed in. All methods are called on one
thread, the loop's. One worker holds a range from `next` until `give_back`, through all retries of its request, and
counts as a connection for that time. Threads advance `Range.position` meanwhile; the scheduler only reads it.

The order is: small files, then the first block of each weight file (its header), then the rest. Within each of these
the model with the fewest ranges so far comes first, then its files by path, then by the order of `add`. A file is
fetched from its lowest offset upwards, but for its last block: that is its second request, and until it brings a byte
there is no third. A cache without slices reads the whole file for each request, to the end even where we have gone, and
would do it for eight at once.
"""

import bisect
import heapq
import math
import statistics
from collections import deque
from collections.abc import Hashable

from yaie_async.fetch.ranges import FetchFile, FileState, ModelState, Range
from yaie_async.store.blockmap import BLOCK

LARGEST = 64 << 20  # bytes of a request: bounds what is lost when a signed URL expires or a peer turns slow
_PER_REQUEST = 32 << 20  # bytes: the requests of a model are at least this large on average
GROWTH_SECONDS = 5.0
SLOW_SECONDS = 5.0
_SLOW_SHARE = 1 / 4
_ENOUGH_FOR_MEDIAN = 3


class Scheduler:
    """Hands out ranges to at most `max_connections` workers."""

    def __init__(self, max_connections: int, *, verify: bool) -> None:
        self.width: int = max_connections  # how many ranges may run now: less after the server asked for fewer
        self._max = max_connections
        self._verify = verify
        self._files: dict[Hashable, FileState] = {}
        self._models: dict[Hashable, ModelState] = {}
        self._running: set[Range] = set()
        self._added = 0
        self._handed = 0  # the lowest `handed` of a waiting model at the last range: a new model starts there
        self._finished: deque[tuple[float, float]] = deque(maxlen=max_connections)  # when, and bytes per second
        self._throttled_at = -math.inf
        self._grown_at = -math.inf

    def add(self, file: FetchFile) -> None:
        """Queue what is missing of a file. The front of an empty or finished file is its size at once."""
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

    def remove(self, key: Hashable) -> None:
        """Forget a file that is finished, failed or no longer wanted. Its running ranges count until given back."""
        state = self._files.pop(key)
        self._dequeue(state)
        state.model.queue(-state.missing)
        state.model.files -= 1
        if not state.model.files:
            del self._models[state.file.model]

    def next(self, now: float) -> Range | None:
        """Hand out the next range, or None when there is none. Time alone may change that (see `throttled`)."""
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
        handed_out = Range(state.file, start, stop, state, now)
        state.running.add(handed_out)
        self._running.add(handed_out)
        return handed_out

    def look(self, now: float) -> set[Hashable]:
        """See how far the running ranges are, several times a second. Return the keys of their files."""
        for one in self._running:
            one.look(now)
            one.state.see(one)
        return {one.file.key for one in self._running}

    def give_back(self, of: Range, now: float) -> None:
        """A range has ended, and so has the thread that read it: what is not written of it is queued again.

        It is queued from the byte where it ended, not from the start of the block. A peer that closes every connection
        before 4 MiB would otherwise never finish a block.
        """
        state, position = of.state, of.position
        self._running.remove(of)
        state.running.remove(of)
        state.see(of)
        if position == of.stop:
            heapq.heappush(state.finished, of.stop)
            if now > of.issued:
                self._finished.append((now, (of.stop - of.start) / (now - of.issued)))
        elif self._files.get(state.file.key) is state:
            self._dequeue(state)
            heapq.heappush(state.gaps, (position, of.stop))
            self._enqueue(state)
            state.model.left += of.stop - position
            state.model.requests -= 1  # the extra request is not the scheduler's choice

    def front(self, key: Hashable) -> int:
        """Everything before this byte of the file is written. The file's size, once it is complete."""
        return self._files[key].front

    def verified(self, key: Hashable, offset: int) -> None:
        """The file's digest has read it up to `offset`. A file may not run far ahead of its digest."""
        self._files[key].verified = max(self._files[key].verified, offset)

    def throttled(self, sent: float, now: float) -> None:
        """A request sent at `sent` was answered 429 or 503: halve the width, then widen by one every 5 s."""
        self._grow(now)
        if sent > self._throttled_at:  # a request sent before that belongs to the same overload
            self.width = max(1, self.width // 2)
            self._throttled_at = self._grown_at = now

    def slow(self, now: float) -> list[Range]:
        """Ranges to interrupt and give back. To be called about once a second.

        These were below a quarter of the median rate for 5 s. The median is taken over the running ranges and those
        that finished while the range ran: a slow range soon runs alone, because the others may not get far ahead of
        it. Older ranges do not count, or all ranges would be dropped again and again once the link becomes slow.
        Ranges without a byte yet are neither slow nor part of the median.
        """
        rates = {one: rate for one in self._running if (rate := one.rate(now)) is not None}
        for one, rate in rates.items():
            all_rates = [*rates.values(), *(speed for at, speed in self._finished if at >= one.issued)]
            enough = len(all_rates) >= _ENOUGH_FOR_MEDIAN
            one.judge(now, slow=enough and rate < statistics.median(all_rates) * _SLOW_SHARE)
        return [one for one in rates if one.slow_since is not None and now - one.slow_since >= SLOW_SECONDS]

    def _first(self, model: ModelState) -> FileState | None:
        """The next file of the model: the first that is not too far ahead of its digest."""
        for state in model.waiting:
            if not self._verify:
                state.verified = state.front
            # Running ranges are not counted. Equal connections end their ranges at the same moment, and all would
            # then wait for the digest (8 connections were idle a quarter of their time).
            if state.finished_ahead() < self._max and not state.is_on_trial:
                return state
        return None

    def _request_size(self, model: ModelState) -> int:
        # What is left ÷ (2 × connections), counting half a range in progress for each connection. Those halves are
        # the 1.5, not part of `left`, because they vary by chance and would cut two equal models into different
        # numbers of ranges.
        share = int(model.left / (1.5 * self._max))
        # More, where there would otherwise be more requests than one for 32 MiB and one for each connection.
        requests = -(-model.queued // _PER_REQUEST) + self._max + model.small - model.requests
        return min(max(share, -(-model.left // max(1, requests)), BLOCK), LARGEST)

    def _enqueue(self, state: FileState) -> None:
        if not state.gaps:
            return
        model = state.model
        if not model.waiting:
            # It had nothing to request, so it has no claim to the ranges that others got in that time.
            model.handed = max(model.handed, self._handed)
        bisect.insort(model.waiting, state, key=lambda one: one.rank)

    def _dequeue(self, state: FileState) -> None:
        if state.gaps:
            del state.model.waiting[bisect.bisect_left(state.model.waiting, state.rank, key=lambda one: one.rank)]

    def _grow(self, now: float) -> None:
        while self.width < self._max and now >= self._grown_at + GROWTH_SECONDS:
            self.width += 1
            self._grown_at += GROWTH_SECONDS
