"""The transport of file bodies: from the socket to the disk without passing through the event loop.

Stock httpx decrypts and copies every byte on the loop's thread. That takes 3.5-5.3 CPU-seconds a GB, in which the loop
does not answer. Here each request and each body runs in a thread of its own (`run_owned`), and the loop sees only its
end or its error. HTTP/1.1 only, because ranges are parallel if each has a connection.
"""

import socket
import ssl
from collections.abc import AsyncIterator
from functools import partial

import anyio
import httpx

from yaie_async.core.threads import run_detached, run_owned
from yaie_async.core.trace import span
from yaie_async.fetch.connection import Connection, Sink
from yaie_async.fetch.origin import Origin, origin_of
from yaie_async.fetch.pool import Pool
from yaie_async.fetch.wire import Address

# The key in `httpx.Response.extensions` of a body that can be drained. httpx wraps `response.stream`, which hides it.
DRAIN = "yaie_async.drain"


class DrainTransport(httpx.AsyncBaseTransport):
    """An httpx transport whose bodies can be drained; see `drainable`.

    It may be made in a thread, and belongs to the event loop that first sends through it. An httpx client may share
    `ssl_context`; its protocols can't be changed from then on.
    """

    def __init__(self, ssl_context: ssl.SSLContext, max_connections: int) -> None:
        # Once, not for each connection, as httpcore does: OpenSSL copies the list for a new connection without the GIL,
        # and another thread that sets it at that moment would free it.
        ssl_context.set_alpn_protocols(["http/1.1"])
        ssl_context.set_alpn_protocols = lambda _: None  # type: ignore[assignment,method-assign]
        self._pool = Pool(partial(Connection, ssl_context=ssl_context), max_connections)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and return its response, the body not yet read. The body of the request is read first.

        **Cancellation:** the connection is closed in any state; its thread has ended.

        **Raises:** `httpx.TransportError`, with the low-level error as its cause.
        """
        origin = origin_of(str(request.url))
        if origin.scheme not in ("http", "https") or not origin.host:
            raise httpx.UnsupportedProtocol(f"neither an http:// nor an https:// URL: {origin.scheme}://{origin.host}")
        await request.aread()
        timeouts = httpx.Timeout(None, **request.extensions.get("timeout", {}))
        while True:
            connection = self._pool.take(origin)
            try:
                addresses = [] if connection.is_open else await resolve(origin, timeouts.connect)
                exchange = partial(connection.exchange, request, addresses, timeouts)
                with span(connection.track, "request", path=request.url.path):  # the query may be a signature
                    head = await connection.run(exchange, "request")
                break
            except BaseException as error:
                self._pool.give_back(connection)
                # The server closed the connection while this request was on its way. RFC 9110 section 9.2.2 allows a
                # second try. A new connection that fails like this is an error.
                lost = isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError))
                if not (lost and connection.reused and connection.silent and request.method in ("GET", "HEAD")):
                    raise
        stream = DrainableStream(connection, self._pool)
        response = httpx.Response(
            head.status_code,
            headers=head.headers.raw_items(),
            stream=stream,
            extensions={"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason},
        )
        if connection.length is not None and response.headers.get("content-encoding", "identity") == "identity":
            response.extensions[DRAIN] = stream
        return response

    async def aclose(self) -> None:
        """Close every connection. A body that is being read ends with an error.

        **Cancellation:** the connections are closed all the same.

        **Raises:** nothing of its own.
        """
        closing = self._pool.clear()

        def close() -> None:
            for connection in closing:
                connection.wire.abort()

        await run_owned(close, name="close")  # in a thread, because the kernel frees megabytes with each


class DrainableStream(httpx.AsyncByteStream):
    """The body of one response, read once: by iteration, or in one go by `drain_into`."""

    def __init__(self, connection: Connection, pool: Pool) -> None:
        self.track: str = connection.track
        self._connection = connection
        self._pool = pool
        self._released = False  # what takes the connection next must not be disturbed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, with any framing or encoding."""
        try:
            while part := await self._connection.run(self._connection.read_some, "body"):
                yield part
        finally:
            await self.aclose()

    async def drain_into(self, sink: Sink) -> int:
        """Read the whole body in one thread, each piece straight into `sink.write`; return its length in bytes.

        **Cancellation:** `sink` gets nothing more, the connection is closed, and control returns once the thread has
        ended: at once, unless `sink.write` itself blocks.

        **Raises:** `httpx.ReadTimeout` when no byte arrives for the read timeout, `httpx.RemoteProtocolError` for a
        truncated body, `httpx.ReadError` for a broken connection, and what `sink` raises.
        """
        if self._released:
            raise httpx.StreamConsumed
        try:
            return await self._connection.run(partial(self._connection.drain, sink), "body")
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Give the connection back; close it unless the body was read to its end.

        **Cancellation:** nothing is waited for.

        **Raises:** nothing of its own.
        """
        if not self._released:
            self._released = True
            self._pool.give_back(self._connection)


def drainable(response: httpx.Response) -> DrainableStream | None:
    """The body of a response if it can be drained: from this transport, not encoded, and of known length."""
    stream = response.extensions.get(DRAIN)
    return stream if isinstance(stream, DrainableStream) else None


async def resolve(origin: Origin, timeout: float | None) -> list[Address]:
    """Every address of a host.

    **Cancellation:** at once. A DNS query can't be interrupted; it runs on in its thread and its result is dropped.

    **Raises:** `httpx.ConnectError`, `httpx.ConnectTimeout`.
    """
    look_up = partial(socket.getaddrinfo, origin.host.encode(), origin.port, type=socket.SOCK_STREAM)
    try:
        with anyio.fail_after(timeout):
            return list(await run_detached(look_up, name="dns", awaited_at_exit=False))
    except TimeoutError as error:
        raise httpx.ConnectTimeout(f"no address for {origin.host} in time") from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error
