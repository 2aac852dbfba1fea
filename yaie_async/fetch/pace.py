"""How fast a body arrives: when it counts as stalled, and how long to wait for more bytes to gather."""

# Bytes a second of one body; below this it has stalled. It is a thirtieth of a 28.8 kbit/s line, so that 8 connections
# which share such a line are still faster. A wait for the user's own rate limit does not count.
SLOWEST = 100

# Bytes that are worth waking a thread for, and the most seconds for which they may gather.
_WORTH = 256 * 1024
_LONGEST_LULL = 0.01


def lull(came: int, seconds: float) -> float:
    """Seconds to let bytes gather after a read of `came` bytes, which arrived in the `seconds` since the last read.

    Each read takes the GIL several times, from every other thread. With eight connections over 1 Gbit/s, reads
    without this wait had 48 KB each, and an import beside them took 10 % longer than with reads of 147 KB.
    """
    return min(_WORTH * seconds / came, _LONGEST_LULL) if came < _WORTH else 0.0


def least(seconds: float) -> int:
    """The fewest bytes that must arrive in `seconds`."""
    return int(SLOWEST * seconds)


class Pace:
    """Watches one body: at least `SLOWEST` must arrive over each `seconds` of waiting for it; None allows any rate."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._waited = 0.0
        self._came = 0

    def too_slow(self, came: int, waited: float) -> bool:
        """Count `came` bytes that arrived after a wait of `waited` seconds. Return whether the body has stalled."""
        self._waited += waited
        self._came += came
        if self._seconds is None or self._waited < self._seconds:
            return False
        slow = self._came < least(self._seconds)
        self._waited, self._came = 0.0, 0
        return slow
