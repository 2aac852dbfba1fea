"""How long something took by itself, on a machine that others use too."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


class Stopwatch:
    """Measures seconds, less those that the threads of this process waited for a CPU core.

    Linux keeps the time that a thread was ready to run and did not in /proc/self/task/*/schedstat. On a quiet machine
    that is next to nothing; beside busy processes it is what they take, so a bound that holds alone holds there too.
    """

    def __init__(self) -> None:
        self._waited = _waited()
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        passed = time.monotonic() - self._started
        others = sum(seconds - self._waited.get(thread, 0.0) for thread, seconds in _waited().items())
        return max(passed - others, 0.0)


def _waited() -> dict[str, float]:
    """Seconds of waiting for a core so far, of each thread of this process."""
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # a thread that has ended; a system that does not count
            found[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found
