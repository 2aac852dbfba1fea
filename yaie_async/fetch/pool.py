"""Which request gets which connection: kept-alive ones by origin, a limit on all, first come first served.

Every method changes the state in one synchronous step and returns what is to be closed; nothing here waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import anyio
import httpx


class Poolable(Protocol):
    @property
    def origin(self) -> Hashable: ...

    def is_quiet(self) -> bool: ...


C = TypeVar("C", bound=Poolable)


@dataclass(eq=False)
class Place(Generic[C]):
    """A request's place in the queue; `served` is set once `connection` is there."""

    origin: Hashable
    connection: C | None = None
    served: anyio.Event = field(default_factory=anyio.Event)


class Pool(Generic[C]):
    """The connections of one transport, idle and in use."""

    def __init__(
        self,
        make: Callable[[Hashable], C],
        limits: httpx.Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.active: set[C] = set()
        self.idle: dict[C, float] = {}  # since when; the oldest first
        self._queue: deque[Place[C]] = deque()
        self._make = make
        self._limits = limits
        self._clock = clock

    def enter(self, origin: Hashable) -> tuple[Place[C], list[C]]:
        """Queue up for a connection; returns the place and the connections to close."""
        place: Place[C] = Place(origin)
        self._queue.append(place)
        return place, self._serve()

    def leave(self, place: Place[C]) -> list[C]:
        """Give a place up, whether served or not; returns the connections to close."""
        if place.connection is not None:
            return self.release(place.connection, keep=False)
        self._queue.remove(place)
        return []

    def release(self, connection: C, *, keep: bool) -> list[C]:
        """Take a connection back, idle if `keep`; returns the connections to close."""
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
        """Forget every connection; returns all of them, to be closed."""
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
        """The idle connection used last, which is the likeliest to be open still."""
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
