"""When a body comes so slowly that it counts as silent: nobody waits for 4 MiB at a byte a second."""

from __future__ import annotations

# Bytes a second of one body. A thirtieth of a line of 28.8 kbit/s: no link that brings a model is slower, and
# 8 connections that share one still bring more each. The user's own limit is no slowness of the server's.
SLOWEST = 100


def least(seconds: float) -> int:
    """Bytes that have to come in so many seconds."""
    return int(SLOWEST * seconds)


class Pace:
    """Watches one body: whether at least `SLOWEST` comes over a window of `seconds`, None for any rate.

    Only the time that was spent waiting for the server counts.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._waited = 0.0
        self._came = 0

    def too_slow(self, came: int, waited: float) -> bool:
        """`came` bytes have come after a wait of `waited` seconds."""
        self._waited += waited
        self._came += came
        if self._seconds is None or self._waited < self._seconds:
            return False
        slow = self._came < least(self._seconds)
        self._waited, self._came = 0.0, 0
        return slow
