"""Limits how many threads do one kind of work, so that no other kind waits for a thread."""

import anyio
from anyio.lowlevel import RunVar


class Limiter:
    """A capacity limiter for each event loop: several may serve one application, each in a thread of its own."""

    def __init__(self, work: str, threads: int) -> None:
        self._threads = threads
        self._of_loop: RunVar[anyio.CapacityLimiter] = RunVar(f"yaie_async.localhub {work}")

    def get(self) -> anyio.CapacityLimiter:
        """Return the limiter of the running event loop."""
        try:
            return self._of_loop.get()
        except LookupError:
            self._of_loop.set(limiter := anyio.CapacityLimiter(self._threads))
            return limiter
