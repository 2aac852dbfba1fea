"""A heartbeat that records every beat: when the event loop ran it, and how late."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

# Seconds. Short compared with the stalls of interest (tens of milliseconds); it costs about 2 % of a core.
INTERVAL = 0.002


class Beats:
    """The recorded beats, as (time, seconds late), and named spans of time."""

    def __init__(self) -> None:
        self.beats: list[tuple[float, float]] = []
        self.spans: list[tuple[str, float, float]] = []
        self._last = time.perf_counter()

    def beat(self) -> None:
        now = time.perf_counter()
        self.beats.append((now, max(0.0, now - self._last - INTERVAL)))
        self._last = now

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the start and end of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spans.append((name, start, time.perf_counter()))

    def figures(self) -> dict[str, float]:
        """Return the longest stall and the p99, in all and by phase.

        A beat that overlaps several phases counts for the first of imports, build and download.
        """
        found: dict[str, float] = {}
        phases: dict[str, list[float]] = {"all": [late for _, late in self.beats]}
        for end, late in self.beats:
            phases.setdefault(self._phase(end - late - INTERVAL, end), []).append(late)
        for name, lates in phases.items():
            found[f"{name} longest"] = max(lates)
            found[f"{name} p99"] = percentile(lates, 0.99)
        return found

    def _phase(self, start: float, end: float) -> str:
        names = {name for name, begun, ended in self.spans if begun < end and start < ended}
        return next((name for name in ("imports", "build", "download") if name in names), "other")


def percentile(values: list[float], part: float) -> float:
    """Return the value below which the fraction `part` of the values lies."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Beats]:
    """Measure the stalls of the event loop during a block."""
    seen = Beats()

    async def watch() -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            seen.beat()

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        seen.beat()  # counts a stall that lasts until the end of the block
        task.cancel()
