"""How long an event loop was away: a task that wants to run all the time, and measures how late it comes."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from yaie_async.core.tasks import task_group

# Short against the stalls of interest (tens of milliseconds), and 0.5 % of a core.
INTERVAL = 0.002


class Pulse:
    """What the heartbeat has seen so far.

    Attributes:
        longest: seconds that the loop was away at most, beyond the interval.
        beats: how often it came round.
    """

    def __init__(self) -> None:
        self.longest: float = 0.0
        self.beats: int = 0
        self._last = time.perf_counter()

    def beat(self) -> None:
        """Note that the loop is here."""
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last - INTERVAL)
        self._last = now
        self.beats += 1


@asynccontextmanager
async def heartbeat() -> AsyncIterator[Pulse]:
    """Watch the loop while the block runs.

    **Cancellation:** the watch ends.

    **Raises:** what the block raises.
    """
    pulse = Pulse()

    async def watch() -> None:
        while True:
            await anyio.sleep(INTERVAL)
            pulse.beat()

    async with task_group() as group:
        group.start_soon(watch)
        try:
            yield pulse
        finally:
            pulse.beat()  # a stall that lasts to the end of the block counts too
            group.cancel_scope.cancel()
