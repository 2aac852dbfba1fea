"""A heartbeat that keeps every beat: how late the event loop came round, and when."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

# Short against the stalls of interest (tens of milliseconds), and about 2 % of a core.
INTERVAL = 0.002


class Beats:
    """What was seen: beats as (when, seconds late), and named spans of time."""

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
        """Note the time that a block takes, awaits included."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spans.append((name, start, time.perf_counter()))

    def figures(self) -> dict[str, float]:
        """Longest and p99 over all and by phase: imports go before build, build before the download."""
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
    """The value below which `part` of the values lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Beats]:
    """Watch the loop during a block."""
    seen = Beats()

    async def watch() -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            seen.beat()

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        seen.beat()  # a stall that lasts to the end of the block counts too
        task.cancel()
