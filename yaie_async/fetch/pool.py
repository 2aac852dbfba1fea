"""Which request gets which connection: idle ones by origin, a limit on all, first come first served.

Every method changes the state in one synchronous step and returns the connections to close. Nothing here waits.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import anyio
import httpx


class Poolable(Protocol):
    @property
    def origin(self) -> Hashable: ...

    def is_quiet(self) -> bool: ...


C = TypeVar("C", bound=Poolable)


@dataclass(eq=False)
class Place(Generic[C]):
    """A request's place in the queue; `served` is set once it has its `connection`."""

    origin: Hashable
    connection: C | None = None
    served: anyio.Event = field(default_factory=anyio.Event)


class Pool(Generic[C]):
    """The connections of one transport, idle and in use."""

    def __init__(
        self, make: Callable[[Any], C], limits: httpx.Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.active: set[C] = set()
        self.idle: dict[C, float] = {}  # since when; the oldest first
        self._queue: deque[Place[C]] = deque()
        self._make = make
        self._limits = limits
        self._clock = clock

    def enter(self, origin: Hashable) -> tuple[Place[C], list[C]]:
        """Queue for a connection; return the place in the queue and the connections to close."""
        place: Place[C] = Place(origin)
        self._queue.append(place)
        return place, self._serve()

    def leave(self, place: Place[C]) -> list[C]:
        """Give up a place, served or not; return the connections to close."""
        if place.connection is not None:
            return self.release(place.connection, keep=False)
        self._queue.remove(place)
        return []

    def release(self, connection: C, *, keep: bool) -> list[C]:
        """Take back a connection, which stays idle if `keep`; return the connections to close."""
        if connection not in self.active:
            return []
        self.active.remove(connection)
        closing = []
        if keep:
            self.idle[connection] = self._clock()
        else:
            closing.append(connection)
        return closing + self._serve()

    def clear(self) -> list[C]:
        """Forget every connection; return all of them, to be closed."""
        closing = [*self.active, *self.idle]
        self.active.clear()
        self.idle.clear()
        return closing

    def _serve(self) -> list[C]:
        closing = self._expired()
        most = self._limits.max_connections
        while self._queue:
            place = self._queue[0]
            connection = self._reusable(place.origin, closing)
            if connection is None:
                if most is not None and len(self.active) + len(self.idle) >= most:
                    if not self.idle:
                        break
                    closing.append(self._pop_oldest())
                connection = self._make(place.origin)
            self.active.add(connection)
            self._queue.popleft()
            place.connection = connection
            place.served.set()
        return closing

    def _reusable(self, origin: Hashable, closing: list[C]) -> C | None:
        """The idle connection that was used last: it is the most likely to be still open."""
        for connection in reversed([idle for idle in self.idle if idle.origin == origin]):
            del self.idle[connection]
            if connection.is_quiet():
                return connection
            closing.append(connection)
        return None

    def _expired(self) -> list[C]:
        expiry, most = self._limits.keepalive_expiry, self._limits.max_keepalive_connections
        closing = []
        while self.idle:
            since = next(iter(self.idle.values()))
            old = expiry is not None and self._clock() - since >= expiry
            if not old and (most is None or len(self.idle) <= most):
                break
            closing.append(self._pop_oldest())
        return closing

    def _pop_oldest(self) -> C:
        connection = next(iter(self.idle))
        del self.idle[connection]
        return connection
