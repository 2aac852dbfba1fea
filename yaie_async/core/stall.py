"""Whether a load has stalled: bytes or an answer are wanted, and none has come for some seconds."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
    """What requests report: those of one load, or all for a Hub's files. Any thread may call `moved` and `failed`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wanted = 0  # requests under way, in the waits between their attempts too
        self._files = 0  # files that come by requests of any load of the Hub
        self._hub: StallWatch | None = None  # what all loads of the Hub report
        self._quiet_since = -math.inf
        self._failure: tuple[str, int, float] | None = None  # why, the number of the next attempt, and when it begins

    @contextmanager
    def behind(self, hub: "StallWatch") -> Iterator[None]:
        """Count a file as wanted during the block, also while no request of this load is under way for it.

        Its ranges may wait for those of the Hub's other loads, or one of these may fetch it.
        """
        self._hub = hub
        self._files += 1
        try:
            yield
        finally:
            self._files -= 1

    @contextmanager
    def wanting(self) -> Iterator[None]:
        """Count a request as being under way during the block; an end without an error is its answer."""
        if not self._wanted:
            self._quiet(0.0)  # nothing was wanted before
        self._wanted += 1
        try:
            with self._hub.wanting() if self._hub else nullcontext():
                yield
            self.moved()
        finally:
            self._wanted -= 1

    def moved(self, held: float = 0.0) -> None:
        """Bytes have come, or an answer. The next ones may take `held` seconds longer, by the user's rate limit."""
        self._quiet(held)
        if self._hub:
            self._hub.moved(held)

    def _quiet(self, held: float) -> None:
        self._quiet_since = max(self._quiet_since, self._clock() + held)
        self._failure = None

    def failed(self, reason: str, attempt: int, wait: float) -> None:
        """A request has failed; its next attempt has this number, and begins in `wait` seconds."""
        self._failure = reason, attempt, self._clock() + wait
        if self._hub:
            self._hub.failed(reason, attempt, wait)

    def look(self, now: float) -> Stall | None:
        """The stall, if there is one; of several failures the newest."""
        if self._files and not self._wanted and self._hub:
            return self._hub.look(now)
        quiet = now - self._quiet_since
        if not self._wanted or quiet < STALL_SECONDS:
            return None
        reason, attempt, begins = self._failure or (f"no byte for {quiet:.0f} s", 1, now)
        return Stall(reason, attempt, begins - now if begins > now else None)


# The watch of the load for which this task works: requests for metadata need not pass it through every layer.
current_watch: ContextVar[StallWatch | None] = ContextVar("yaie_async_stall_watch", default=None)
