"""How fast a body comes: when it counts as silent, and how long to let more of it gather."""

from __future__ import annotations

# Bytes a second of one body: nobody waits for 4 MiB at a byte a second. A thirtieth of a line of 28.8 kbit/s: no link
# that brings a model is slower, and 8 connections that share one still bring more each. The user's own limit is no
# slowness of the server's.
SLOWEST = 100

# Bytes that a thread is worth waking for, and seconds for which they may gather.
_WORTH = 256 * 1024
_LONGEST_LULL = 0.01


def lull(came: int, seconds: float) -> float:
    """Seconds to let bytes gather after a read of `came`, which came in the `seconds` since the read before.

    Each read costs its thread the GIL several times, and so each other thread. With eight connections over 1 Gbit/s
    reads of what was there brought 48 KB each; an import beside them took 10 % longer than with reads of 147 KB.
    """
    return min(_WORTH * seconds / came, _LONGEST_LULL) if came < _WORTH else 0.0


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
