"""Progress of a load: the frozen events that users get, and the meter that they are made from."""

import inspect
import math
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import anyio

from yaie_async.core.log import contained, logger
from yaie_async.core.stall import StallWatch, current_watch
from yaie_async.core.tasks import task_group

Stage = Literal["resolving", "downloading", "stalled", "waiting", "verifying", "importing", "building", "ready"]
BlobStage = Literal["downloading", "verifying", "waiting"]
OnProgress = Callable[["Progress"], object]
Within = Callable[[], tuple[float | None, float | None]]  # the share of a stage that is done, and the seconds left

INTERVAL = 0.1  # seconds: more than ten events a second are of no use to a person or a log
RATE_WINDOW = 5.0  # seconds: on a slow link a range ends only every second or so

# The stage of a download is the first of these that one of its blobs is in.
_BLOB_STAGES: tuple[BlobStage, ...] = ("downloading", "verifying", "waiting")


@dataclass(frozen=True, slots=True)
class Progress:
    """One event of a load.

    Attributes:
        model: the repo id or directory as the caller gave it.
        stage: "resolving", "downloading", "stalled" (bytes or an answer are wanted, and none has come for three
            seconds), "waiting" (another process fetches all missing files), "verifying", "importing" (the files are
            there, and the libraries that build are still imported), "building" or "ready".
        bytes_done: bytes of this load's files on disk, cached files included.
        bytes_total: bytes of this load's files; 0 until the listing is known.
        bytes_per_second: average of the last five seconds of the download; 0.0 while no bytes arrive.
        seconds_left: estimate for the download; in "importing" and "building" until the model is ready, by what this
            machine took the last time (for a tokenizer alone, until its imports end). None while unknown.
        files_done: number of complete files.
        files_total: number of files of this load; 0 until the listing is known.
        stage_fraction: share of the present stage that is done, 0.0 to 1.0: of the modules in "importing", of the
            tensors in "building" (of their bytes, if it began during the download). None where unknown, and in all
            other stages.
        reason: in "stalled", why, as one line of text for people.
        attempt: in "stalled", the number of the attempt that is under way or comes next, from 1; 0 where there is none.
        retry_in: in "stalled", seconds until the next attempt begins; None while one is under way.
        steps: seconds spent in each stage so far, by order of first entry; together the time since the load began, up
            to its end. They pass without an event: two events that differ in nothing else are equal.
    """

    model: str
    stage: Stage
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    files_done: int = 0
    files_total: int = 0
    stage_fraction: float | None = None
    reason: str = ""
    attempt: int = 0
    retry_in: float | None = None
    steps: tuple[tuple[str, float], ...] = field(default=(), compare=False)

    @property
    def fraction(self) -> float:
        """Share of the bytes on disk, 0.0 to 1.0; 1.0 once ready."""
        if self.stage == "ready":
            return 1.0
        return self.bytes_done / self.bytes_total if self.bytes_total else 0.0


class Meter:
    """Counts the bytes and files of one load. Only `add` and `blob_stage` may be called from any thread.

    Attributes:
        model: the repo id or directory as the caller gave it.
        stall: what its requests report. Loads that wait for each other's requests share one.
    """

    def __init__(
        self, model: str, clock: Callable[[], float] = time.monotonic, *, stall: StallWatch | None = None
    ) -> None:
        self.model = model
        self.stall: StallWatch = stall or StallWatch(clock)
        self._clock = clock
        self._lock = threading.Lock()
        self._stage: Stage = "resolving"
        self._within: Within | None = None
        self._done = 0
        self._total = 0
        self._files_done = 0
        self._files_total = 0
        # (time, bytes) of the last seconds. One entry per interval, because the loop's thread adds them up.
        self._fetched: deque[tuple[float, int]] = deque()
        self._blobs: Counter[BlobStage] = Counter()
        self._steps: dict[str, float] = {}
        # The stage of the last event, and until when it is counted.
        self._seen: tuple[Stage, float] = "resolving", clock()
        self._ended = False

    def stage(self, stage: Stage, within: Within | None = None) -> None:
        """Begin a stage; `within` says how far it is."""
        self._stage, self._within = stage, within
        self.snapshot()  # the steps count from here

    def end(self) -> None:
        """The load has ended, however it did: its steps take no more time."""
        self.snapshot()
        self._ended = True

    def expect(self, *, total: int, files: int) -> None:
        """Set the size of the whole load: `total` bytes in `files` files."""
        self._total, self._files_total = total, files

    def held(self, size: int) -> None:
        """Count `size` bytes that are on disk already, which does not affect the rate. Negative to take bytes back."""
        with self._lock:
            self._done += size

    def cached(self, size: int) -> None:
        """Count a complete file of `size` bytes that is on disk already."""
        self.held(size)
        self._files_done += 1

    def add(self, size: int, *, held: float = 0.0) -> None:
        """Count `size` bytes that have just been fetched and written; the rate limit asks for a wait after them."""
        with self._lock:
            self.stall.moved(held)
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
    def blob_stage(self, stage: BlobStage) -> Iterator[None]:
        """Count a blob as being in this stage during the block ("waiting": another process fetches it)."""
        with self._lock:
            self._blobs[stage] += 1
        try:
            yield
        finally:
            with self._lock:
                self._blobs[stage] -= 1

    def snapshot(self) -> Progress:
        """The current event."""
        now = self._clock()
        stage, rate = self._stage, 0.0
        if stage == "downloading":
            stage = next((of_blob for of_blob in _BLOB_STAGES if self._blobs[of_blob]), stage)
        with self._lock:
            while self._fetched and now - self._fetched[0][0] > RATE_WINDOW:
                self._fetched.popleft()
            if stage == "downloading" and self._fetched:
                rate = sum(size for _, size in self._fetched) / max(now - self._fetched[0][0], INTERVAL)
        left = max(0, self._total - self._done)
        # Digests are computed behind the download: once all bytes are on disk, only digests are left.
        verifying = stage == "downloading" and 0 < self._total <= self._done
        stage = "verifying" if verifying else stage
        stall = self.stall.look(now) if stage in ("resolving", "downloading") else None
        if stall is not None:
            stage, rate = "stalled", 0.0
        share, seconds = self._within() if self._within else (None, None)
        return Progress(
            model=self.model,
            stage=stage,
            bytes_done=min(self._done, self._total),
            bytes_total=self._total,
            bytes_per_second=rate,
            seconds_left=left / rate if rate and not verifying else seconds,
            files_done=self._files_done,
            files_total=self._files_total,
            stage_fraction=share,
            reason=stall.reason if stall else "",
            attempt=stall.attempt if stall else 0,
            retry_in=stall.retry_in if stall else None,
            steps=self._steps_until(now, stage),
        )

    def _steps_until(self, now: float, stage: Stage) -> tuple[tuple[str, float], ...]:
        """Count the time since the last event as spent in its stage; `stage` is that of this one."""
        with self._lock:
            before, since = self._seen
            self._seen = stage, now
            if before != "ready" and not self._ended:
                self._steps[before] = self._steps.get(before, 0.0) + now - since
            return tuple(self._steps.items())


class Snapshots(Protocol):
    """What `following` looks at."""

    model: str

    def snapshot(self) -> Progress: ...


@asynccontextmanager
async def reporting(meter: Meter, on_progress: OnProgress) -> AsyncIterator[None]:
    """As `following`, in the task whose work the meter measures: its requests report to the meter, and it ends.

    **Cancellation:** as `following`.

    **Raises:** what the block raises.
    """
    before = current_watch.get()
    current_watch.set(meter.stall)
    try:
        async with following(meter, on_progress):
            yield
    finally:
        current_watch.set(before)
        meter.end()


@asynccontextmanager
async def following(meter: Snapshots, on_progress: OnProgress) -> AsyncIterator[None]:
    """Call `on_progress` on the loop's thread during the block: at its start and end, and on changes in between.

    An exception in the callback is logged once. The load then goes on without further events. A load that ends while it
    has stalled, by an error or a cancel, has that as its last event.

    **Cancellation:** the last event is sent as well, with the stage that the load had reached.

    **Raises:** what the block raises.
    """
    last: Progress | None = None
    broken = False

    def emit() -> None:
        nonlocal last, broken
        event = meter.snapshot()
        if broken or event == last:
            return
        last = event

        def report(error: BaseException) -> None:
            nonlocal broken
            broken = True
            facts = {"model": meter.model, "stage": event.stage}
            text = "on_progress failed for %s. The load goes on without events."
            logger.error(text, meter.model, exc_info=error, extra=facts)

        with contained(report):
            if inspect.iscoroutine(result := on_progress(event)):
                result.close()
                raise TypeError("it returned a coroutine, which would never run")

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
    except BaseException:
        broken |= last is not None and last.stage == "stalled"  # what ended it is no download
        raise
    finally:
        emit()
