"""The token bucket behind `max_bytes_per_second`: one for all bodies of a Hub."""

import threading

# What an idle bucket saves up, in seconds of its rate: a thread that sleeps a little too long loses nothing, and it is
# only 1 % of ten seconds.
_BURST = 0.1
# What all connections together may read before their first wait, in seconds of the rate: 2 % of ten seconds.
_HEAD_START = 0.2


class TokenBucket:
    """Says how long to wait after bytes have arrived. It allows debt, so that no read has to ask in advance.

    Safe to call from several threads. Time is passed in, as seconds of any monotonic clock.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._tokens = 0.0  # negative: debt
        self._at: float | None = None
        self._lock = threading.Lock()

    def largest_read(self, connections: int) -> int:
        """The most bytes that one read may ask for: each of the threads can be one read ahead of the bucket."""
        return max(1, int(self._rate * _HEAD_START / connections))

    def take(self, nbytes: int, now: float) -> float:
        """Take `nbytes` that have just arrived; return the seconds to wait before the next read."""
        with self._lock:
            if self._at is None:
                self._at = now
            # `now` may be earlier than in the last call: another thread read the clock later and got the lock sooner.
            earned = self._rate * (now - self._at)
            self._tokens = min(self._rate * _BURST, self._tokens + earned) - nbytes
            self._at = now
            return max(0.0, -self._tokens / self._rate)
