"""The open connections of a server: how many there may be, and how long a client may keep the server waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Seconds that a client has for a whole request, and for reading a chunk of the answer: 4 kB/s are enough.
_PATIENCE = 60.0
# Seconds before a client that has asked for something makes room for another one: a quick one never takes as long.
_GRACE = 1.0
# Clients that read nothing cost up to half a MiB each.
_MOST = 512
# Descriptors for the event loop, the log, the files that are hashed, and connections that are being closed.
_RESERVE = 64

_FULL = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def most_connections() -> int:
    """Return how many connections the limit of open files of this process allows: each may send a file."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return _MOST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(1, min(_MOST, (soft - _RESERVE) // 2))


class Connections:
    """At most `most` connections, on one event loop.

    Beyond, a new one takes the place of the one that has kept the server waiting for longest; where the server is at
    work for all of them, the new one is answered 429. An address that holds more than half of the places makes room
    itself: for others at once, also where the server is at work for it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.open: dict[object, _Connection] = {}

    def protocol(self, make: Callable[..., asyncio.Protocol]) -> Callable[..., asyncio.Protocol]:
        """Return a factory of protocols that hand their events to one of `make`, as long as the client is quick."""
        return lambda **options: _Connection(self, make(**options))

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run `app` for a request. Its connection waits for the client until the request's body is whole.

        **Cancellation:** as of `app`.

        **Raises:** what `app` raises.
        """
        connection = self.open.get(scope["client"])
        if connection is None:  # it was closed, or its server makes its protocols in another way
            await app(scope, receive, send)
            return

        async def received() -> Message:
            message = await receive()
            if not message.get("more_body"):
                connection.wait(for_body=False)
            return message

        connection.requests += 1  # the next request may begin before this one has ended here
        connection.has_asked = True
        sizes = dict(scope["headers"])
        connection.wait(for_body=b"transfer-encoding" in sizes or sizes.get(b"content-length", b"0") != b"0")
        try:
            await app(scope, received, send)
        finally:
            connection.requests -= 1
            connection.wait()


class _Connection(asyncio.Protocol):
    """Hands all events to the protocol of the server, and drops a client that keeps the server waiting."""

    def __init__(self, connections: Connections, protocol: asyncio.Protocol) -> None:
        self.client: tuple[object, ...] = ()
        self.requests = 0
        self.has_asked = False
        self._open, self._most = connections.open, connections.most
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._for_body = self._for_reader = False
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def address(self) -> object:
        """The address of the client, or this connection where it has none."""
        return self.client[0]

    def wait(self, *, for_body: bool | None = None, for_reader: bool | None = None) -> None:
        """Wait for a request if there is none, for a body, or for the client to read. Each call begins anew."""
        self._for_body = self._for_body if for_body is None else for_body
        self._for_reader = self._for_reader if for_reader is None else for_reader
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (not self.requests or self._for_body or self._for_reader) and not self._transport.is_closing():
            self._since = self._loop.time()
            self._timer = self._loop.call_later(_PATIENCE, self.drop)

    def yields_at(self, grace: float) -> float:
        """Return the time from which this connection makes room for another one."""
        return self._since + (grace if self.has_asked else 0) if self._timer else float("inf")

    def _slowest(self) -> _Connection | None:
        """Return the connection that makes room for this one; None where the server is at work for all that could."""
        # The youngest first: `min` takes it where the server is at work for all, which loses the least work.
        could = list(reversed(self._open.values()))
        address, places = Counter(each.address for each in could).most_common(1)[0]
        if 2 * places > self._most:
            could = [each for each in could if each.address == address]
            if address != self.address:
                return min(could, key=lambda each: each.yields_at(0))
        slowest = min(could, key=lambda each: each.yields_at(_GRACE))
        return slowest if slowest.yields_at(_GRACE) <= self._loop.time() else None

    def drop(self) -> None:
        """Close the connection, with what the client has not read."""
        self._open.pop(self.client, None)
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # By this name a request finds its connection; there is none if the client has left already.
        self.client = (transport.get_extra_info("peername") or (self,))[:2]
        if len(self._open) >= self._most:
            slowest = self._slowest()
            if slowest is None:
                self._protocol = asyncio.Protocol()
                self._transport.write(_FULL)
                self._transport.close()
                return
            slowest.drop()
        self._open[self.client] = self
        self.wait()
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self.wait(for_reader=True)
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self.wait(for_reader=False)
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.wait()  # ends the timer
        if self._open.get(self.client) is self:
            del self._open[self.client]
        self._protocol.connection_lost(exc)
