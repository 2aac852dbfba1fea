"""What a load tells while it runs: frozen events, and the meter that counts towards them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Literal

import anyio

from yaie_async.core.tasks import task_group

Stage = Literal["resolving", "downloading", "waiting", "verifying", "building", "ready"]
OnProgress = Callable[["Progress"], object]

# Ten events a second are as many as a person or a log can use; the rate is an average over a few seconds
# because a range ends only every second or so on a slow link.
INTERVAL = 0.1
RATE_WINDOW = 5.0

logger: logging.Logger = logging.getLogger("yaie_async")


@dataclass(frozen=True, slots=True)
class Progress:
    """One event of a load.

    Attributes:
        model: the repo id or directory, as it was asked for.
        stage: "resolving", "downloading", "waiting" (all that is missing is being fetched by another process),
            "verifying", "building" or "ready".
        bytes_done: bytes of this load's files that are on disk, cached ones included.
        bytes_total: bytes of this load's files; 0 until the listing is known.
        bytes_per_second: average over the last five seconds of download, 0.0 where nothing arrives.
        seconds_left: of the download, or None while it can't be told.
        files_done: files that are complete.
        files_total: files of this load; 0 until the listing is known.
    """

    model: str
    stage: Stage
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    files_done: int = 0
    files_total: int = 0

    @property
    def fraction(self) -> float:
        """Share of the bytes that is on disk, 0.0 to 1.0; 1.0 once ready."""
        if self.stage == "ready":
            return 1.0
        return self.bytes_done / self.bytes_total if self.bytes_total else 0.0


class Meter:
    """Counts one load. `add` may be called from the threads that write bytes, all else on the loop's thread."""

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.model = model
        self._clock = clock
        self._lock = threading.Lock()
        self._stage: Stage = "resolving"
        self._done = 0
        self._total = 0
        self._files_done = 0
        self._files_total = 0
        # (when, bytes) of the last seconds; one entry for all of an interval, since the loop's thread adds them up.
        self._fetched: deque[tuple[float, int]] = deque()
        self._at_work = self._waiting = self._hashing = 0  # blobs

    def stage(self, stage: Stage) -> None:
        self._stage = stage

    def expect(self, *, total: int, files: int) -> None:
        """State the size of the whole load: `total` bytes in `files` files."""
        self._total, self._files_total = total, files

    def held(self, size: int) -> None:
        """Count `size` bytes that were on disk already: progress, but no rate. Negative to take bytes back."""
        with self._lock:
            self._done += size

    def cached(self, size: int) -> None:
        """Count a whole file of `size` bytes that was there already."""
        self.held(size)
        self._files_done += 1

    def add(self, size: int) -> None:
        """Count `size` bytes that have just been fetched and written."""
        with self._lock:
            self._done += size
            now = self._clock()
            begun, sum_of_interval = self._fetched[-1] if self._fetched else (-math.inf, 0)
            if now - begun < INTERVAL:
                self._fetched[-1] = begun, sum_of_interval + size
            else:
                self._fetched.append((now, size))

    def file_done(self) -> None:
        self._files_done += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """A blob is being fetched, or looked at, during the block."""
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A blob is another process's during the block. Where nothing else is done that is the stage."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextmanager
    def hashing(self) -> Iterator[None]:
        """A blob that lies there, whoever wrote it, is verified during the block. May be entered in any thread."""
        with self._lock:
            self._hashing += 1
        try:
            yield
        finally:
            with self._lock:
                self._hashing -= 1

    def snapshot(self) -> Progress:
        """The event of this moment."""
        now = self._clock()
        stage = self._stage
        if stage == "downloading" and not self._at_work and (self._hashing or self._waiting):
            stage = "verifying" if self._hashing else "waiting"
        rate = 0.0
        with self._lock:
            while self._fetched and now - self._fetched[0][0] > RATE_WINDOW:
                self._fetched.popleft()
            if stage == "downloading" and self._fetched:
                rate = sum(size for _, size in self._fetched) / max(now - self._fetched[0][0], INTERVAL)
        left = max(0, self._total - self._done)
        # The digests follow the bytes: once all of those are there, what is waited for is the rest of the digests.
        verifying = stage == "downloading" and 0 < self._total <= self._done
        return Progress(
            model=self.model,
            stage="verifying" if verifying else stage,
            bytes_done=min(self._done, self._total),
            bytes_total=self._total,
            bytes_per_second=rate,
            seconds_left=left / rate if rate and not verifying else None,
            files_done=self._files_done,
            files_total=self._files_total,
        )


@asynccontextmanager
async def reporting(meter: Meter, on_progress: OnProgress) -> AsyncIterator[None]:
    """Call `on_progress` on the loop's thread while the block runs: first and last event always, else on change.

    An exception in the callback is logged, once, and the load goes on without further events.

    **Cancellation:** the last event is sent then too; it tells the stage in which the load ended.
    """
    last: Progress | None = None
    broken = False

    def emit() -> None:
        nonlocal last, broken
        event = meter.snapshot()
        if broken or event == last:
            return
        last = event
        try:
            on_progress(event)
        except Exception:
            broken = True
            facts = {"model": meter.model, "stage": event.stage}
            logger.exception("on_progress failed for %s; the load goes on without it", meter.model, extra=facts)

    async def tick() -> None:
        while True:
            await anyio.sleep(INTERVAL)
            emit()

    emit()
    try:
        async with task_group() as group:
            group.start_soon(tick)
            try:
                yield
            finally:
                group.cancel_scope.cancel()
    finally:
        emit()
