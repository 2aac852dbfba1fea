"""Whether a load has stalled: bytes or an answer are wanted, and none has come for some seconds."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

STALL_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Stall:
    """Why nothing comes, and what is done about it; `Progress` has the same fields."""

    reason: str
    attempt: int
    retry_in: float | None


class StallWatch:
    """What the requests of one load report. Only `moved` and `failed` may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wanted = 0  # requests under way, in the waits between their attempts too
        self._quiet_since = -math.inf
        self._failure: tuple[str, int, float] | None = None  # why, the number of the next attempt, and when it begins

    @contextmanager
    def wanting(self) -> Iterator[None]:
        """Count a request as being under way during the block; an end without an error is its answer."""
        if not self._wanted:
            self.moved()  # nothing was wanted before
        self._wanted += 1
        try:
            yield
            self.moved()
        finally:
            self._wanted -= 1

    def moved(self, held: float = 0.0) -> None:
        """Bytes have come, or an answer. The next ones may take `held` seconds longer, by the user's rate limit."""
        self._quiet_since = max(self._quiet_since, self._clock() + held)
        self._failure = None

    def failed(self, reason: str, attempt: int, wait: float) -> None:
        """A request has failed; its next attempt has this number, and begins in `wait` seconds."""
        self._failure = reason, attempt, self._clock() + wait

    def look(self, now: float) -> Stall | None:
        """The stall, if there is one; of several failures the newest."""
        quiet = now - self._quiet_since
        if not self._wanted or quiet < STALL_SECONDS:
            return None
        reason, attempt, begins = self._failure or (f"no byte for {quiet:.0f} s", 1, now)
        return Stall(reason, attempt, begins - now if begins > now else None)


# The watch of the load for which this task works: requests for metadata need not pass it through every layer.
current_watch: ContextVar[StallWatch | None] = ContextVar("yaie_async_stall_watch", default=None)
