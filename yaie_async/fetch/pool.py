"""Which request gets which connection: the idle ones by origin, and a limit on all of them.

No request waits. The only requests are for the ranges of a Hub's scheduler, which hands out no more of them than there
may be connections, and a range is given back after its connection is.
"""

import time
from collections.abc import Callable

from yaie_async.fetch.connection import Connection
from yaie_async.fetch.origin import Origin

EXPIRY = 5.0  # seconds that a connection stays idle, as in httpx


class Pool:
    """The connections of one transport, idle and in use. Every method is one synchronous step on the loop's thread."""

    def __init__(self, make: Callable[[Origin], Connection], max_connections: int) -> None:
        self._make = make
        self._max = max_connections
        self._active: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # since when; the oldest first

    def take(self, origin: Origin) -> Connection:
        """An idle connection of the origin, else a new one, for which the oldest idle one may have to go."""
        self._close_surplus()
        connection = self._reusable(origin) or self._make(origin)
        self._active.add(connection)
        self._close_surplus()
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection that can be used again, close any other."""
        if connection not in self._active:
            return  # `clear` came first
        self._active.remove(connection)
        if connection.is_reusable():
            self._idle[connection] = time.monotonic()
        else:
            connection.wire.abort()
        self._close_surplus()

    def clear(self) -> list[Connection]:
        """Forget every connection; return all of them, to be closed."""
        closing = [*self._active, *self._idle]
        self._active.clear()
        self._idle.clear()
        return closing

    def _reusable(self, origin: Origin) -> Connection | None:
        """The idle connection that was used last: it is the most likely to be still open."""
        for connection in reversed([idle for idle in self._idle if idle.origin == origin]):
            del self._idle[connection]
            if connection.wire.is_quiet():
                return connection
            connection.wire.abort()
        return None

    def _close_surplus(self) -> None:
        """Close the oldest idle connections: those that have expired, and those beyond the limit."""
        for connection, since in list(self._idle.items()):
            within = len(self._active) + len(self._idle) <= self._max
            if within and time.monotonic() - since < EXPIRY:
                break
            del self._idle[connection]
            connection.wire.abort()
