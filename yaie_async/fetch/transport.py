"""The transport of file bodies: from the socket to their place on disk without passing the event loop.

Stock httpx decrypts and copies every byte on the loop's thread: 3.5-5.3 CPU-seconds a GB that the loop does
not answer. Here each request and each body runs in a thread of its own (`run_owned`), and the loop sees an
end or an error. HTTP/1.1 only: one connection a range is what makes ranges parallel.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Hashable
from functools import partial
from typing import TypeVar

import anyio
import h11
import httpx

from yaie_async.core.threads import run_detached, run_owned
from yaie_async.core.trace import span
from yaie_async.fetch.connection import Connection, Head, Origin, Sink, Timeouts
from yaie_async.fetch.pool import Pool
from yaie_async.fetch.wire import Address

T = TypeVar("T")

# The key of `httpx.Response.extensions` under which a body that can be drained is found: httpx wraps
# `response.stream`, so it can't be reached there.
DRAIN = "yaie_async.drain"

_PORTS = {"http": 80, "https": 443}


class DrainTransport(httpx.AsyncBaseTransport):
    """An httpx transport whose bodies can be drained; see `drainable`.

    Made in a thread or not, it belongs to the event loop that first sends through it. Making an `SSLContext`
    reads some hundred certificates (20 ms): do that off the loop. The context is its own from then on.
    """

    def __init__(self, ssl_context: ssl.SSLContext, limits: httpx.Limits) -> None:
        # Here, and not for each connection: OpenSSL copies the list for a new one without the GIL, and another
        # thread that set it again meanwhile would free it under that.
        ssl_context.set_alpn_protocols(["http/1.1"])

        def connect(origin: Hashable) -> Connection:
            assert isinstance(origin, Origin)
            return Connection(origin, ssl_context)

        self._pool = Pool(connect, limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and return its response, whose body is still to be read.

        A request body is read into memory before a connection is asked for.

        **Cancellation:** the connection, in whatever state, is closed; its thread has ended.

        **Raises:** `httpx.TransportError`s, with the low-level error as their cause.
        """
        origin = origin_of(request.url)
        head = h11_request(request)
        body = await _read_all(request.stream)
        timeouts = Timeouts(**request.extensions.get("timeout", {}))
        while True:
            connection = await self._acquire(origin, timeouts.pool)
            try:
                addresses = [] if connection.is_open() else await _resolve(origin, timeouts.connect)
                exchange = partial(connection.exchange, head, body, addresses, timeouts)
                with span(connection.track, "request", path=request.url.path):  # the query may be a signature
                    response = await connection.run(exchange, "request")
            except BaseException as error:
                self._release(connection)
                # The server closed it while this request was on its way. RFC 9110 section 9.2.2 allows a
                # second try, and a new connection that fails like this is an error.
                lost = isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError))
                if lost and connection.reused and connection.silent and request.method in ("GET", "HEAD"):
                    continue
                raise
            return self._response(request, connection, response)

    async def aclose(self) -> None:
        """Close every connection. A body that is being read ends with an error.

        **Cancellation:** they are closed all the same.
        """
        # In a thread: with each the kernel frees megabytes.
        await run_owned(partial(_abort, self._pool.clear()), name="close")

    def _response(self, request: httpx.Request, connection: Connection, head: Head) -> httpx.Response:
        stream = DrainableStream(request, connection, self._release)
        response = httpx.Response(
            head.status,
            headers=head.headers,
            stream=stream,
            extensions={"http_version": b"HTTP/" + head.version, "reason_phrase": head.reason},
        )
        if head.length is not None and response.headers.get("content-encoding", "identity") == "identity":
            response.extensions[DRAIN] = stream
        return response

    async def _acquire(self, origin: Origin, timeout: float | None) -> Connection:
        place, closing = self._pool.enter(origin)
        _abort(closing)
        if place.connection is not None:  # as a rule: there are as many connections as ranges
            return place.connection
        try:
            with anyio.fail_after(timeout):
                await place.served.wait()
        except BaseException as error:
            _abort(self._pool.leave(place))
            if isinstance(error, TimeoutError):
                raise httpx.PoolTimeout("no connection became free in time") from error
            raise
        assert place.connection is not None
        return place.connection

    def _release(self, connection: Connection) -> None:
        _abort(self._pool.release(connection, keep=connection.is_reusable()))


class DrainableStream(httpx.AsyncByteStream):
    """The body of one response, read once: as an iterator, or in one go by `drain_into`."""

    def __init__(
        self,
        request: httpx.Request,
        connection: Connection,
        release: Callable[[Connection], None],
    ) -> None:
        self._request = request
        self._connection = connection
        self._release = release
        self._consumed = False
        self._released = False

    @property
    def track(self) -> str:
        """Its connection's name in a trace."""
        return self._connection.track

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, however it is framed or encoded.

        **Cancellation:** the connection is closed; its thread has ended.

        **Raises:** as `drain_into`.
        """
        self._consume()
        try:
            while part := await self._run(self._connection.read_some):
                yield part
        finally:
            self._finish()

    async def drain_into(self, sink: Sink) -> int:
        """Read the whole body in one thread, each piece straight into `sink.write`; returns its bytes.

        **Cancellation:** `sink` gets nothing more from then on, the connection is closed, and control returns
        once the thread has ended: at once, unless `sink.write` itself keeps it.

        **Raises:** `httpx.ReadTimeout` when no byte comes for the read timeout, `httpx.RemoteProtocolError`
        for a body cut short, `httpx.ReadError` for a broken connection, and what `sink` raises.
        """
        self._consume()
        try:
            return await self._run(partial(self._connection.drain, sink))
        finally:
            self._finish()

    async def aclose(self) -> None:
        """Give the connection back; close it unless the body was read to its end."""
        self._finish()

    async def _run(self, fn: Callable[[], T]) -> T:
        try:
            return await self._connection.run(fn, "body")
        except httpx.TransportError as error:
            error.request = self._request  # httpx does this for its own ways of reading
            raise

    def _consume(self) -> None:
        if self._consumed:
            raise httpx.StreamConsumed
        self._consumed = True

    def _finish(self) -> None:
        if not self._released:
            self._released = True
            self._release(self._connection)


def drainable(response: httpx.Response) -> DrainableStream | None:
    """The response's body as one that can be drained, or None: not ours, encoded, or of unknown length."""
    stream = response.extensions.get(DRAIN)
    return stream if isinstance(stream, DrainableStream) else None


def origin_of(url: httpx.URL) -> Origin:
    """Where a URL's requests go; `httpx.UnsupportedProtocol` for anything but HTTP(S)."""
    if url.scheme not in _PORTS or not url.host:
        raise httpx.UnsupportedProtocol(f"neither an http:// nor an https:// URL: {url.scheme}://{url.host}")
    return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme])


def h11_request(request: httpx.Request) -> h11.Request:
    try:
        return h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error


async def _resolve(origin: Origin, timeout: float | None) -> list[Address]:
    """Every address of a host.

    **Cancellation:** control returns at once; a look-up can't be interrupted, so it runs on and is dropped.
    """

    def look_up() -> list[Address]:
        return list(socket.getaddrinfo(origin.host.encode(), origin.port, type=socket.SOCK_STREAM))

    try:
        with anyio.fail_after(timeout):
            return await run_detached(look_up, name="dns", awaited_at_exit=False)
    except TimeoutError as error:
        raise httpx.ConnectTimeout(f"no address for {origin.host} in time") from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error


async def _read_all(stream: httpx.AsyncByteStream | httpx.SyncByteStream) -> bytes:
    assert isinstance(stream, httpx.AsyncByteStream)
    return b"".join([part async for part in stream])


def _abort(connections: list[Connection]) -> None:
    for connection in connections:
        connection.abort()
