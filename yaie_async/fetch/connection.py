"""One HTTP/1.1 connection: a request out, a head in, a body in. All of it blocks, in owned threads."""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import h11
import httpx

from yaie_async.core.threads import run_owned
from yaie_async.fetch.pace import SLOWEST, Pace, lull
from yaie_async.fetch.stop import Stop
from yaie_async.fetch.wire import READ_SIZE, Address, Wire, time_left

T = TypeVar("T")

# As httpcore: CDNs send heads of several KiB (policies, signed cookies), nobody sends this much.
MAX_HEAD = 100 * 1024
# h11 copies what comes along with the head, so no more of the body than this.
HEAD_READ = 64 * 1024


class Sink(Protocol):
    """Where a body goes.

    Attributes:
        largest: bytes that one read should ask for at most, for a limit on the rate.
    """

    largest: int

    def write(self, data: memoryview, stopped: Stop) -> None:
        """Take the next bytes of the body; called in the thread that reads it.

        `data` is valid during the call only. An implementation that waits does so by `stopped.wait(seconds)`,
        and writes nothing once that is set. What it raises ends the drain and comes out of it.
        """


@dataclass(frozen=True)
class Origin:
    scheme: str
    host: str
    port: int


@dataclass(frozen=True)
class Timeouts:
    """Seconds, None for ever: httpx's four, as its request extensions carry them."""

    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None


@dataclass(frozen=True)
class Head:
    """A response up to its body.

    Attributes:
        length: bytes of the body, or None where only its end tells.
    """

    status: int
    reason: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    length: int | None


class Connection:
    """A connection for one request at a time.

    Attributes:
        reused: whether it has carried a request before the present one.
        silent: whether nothing of the present response has arrived.
        track: its name in a trace.
    """

    _numbers = itertools.count(1)

    def __init__(self, origin: Origin, ssl_context: ssl.SSLContext) -> None:
        self.origin = origin
        self.track: str = f"connection {next(self._numbers)} to {origin.host}"
        self.reused: bool = False
        self.silent: bool = True
        self._wire = Wire(ssl_context if origin.scheme == "https" else None, origin.host)
        self._open = False
        self._http: h11.Connection
        self._length: int | None = None
        self._patience: float | None = None
        self._kept_alive = False
        self._complete = False  # the body was read to its end
        self._surplus = False  # and there was more behind it
        self._buffer = memoryview(b"")

    def abort(self) -> None:
        """End the connection from any thread; see `Wire.abort`."""
        self._wire.abort()

    def is_open(self) -> bool:
        return self._open

    def is_quiet(self) -> bool:
        """Whether nothing came and nothing ended while the connection was idle."""
        return self._wire.is_quiet()

    def is_reusable(self) -> bool:
        """Whether the response was read to its end, both sides keep the connection, and nothing more came by then.

        What comes later is looked for when it is used again.
        """
        return self._complete and self._kept_alive and not self._surplus and not self._wire.aborted.is_set()

    async def run(self, fn: Callable[[], T], name: str) -> T:
        """Run one of the blocking methods below in a thread.

        **Cancellation:** the socket is shut down, the thread closes it and ends, then control returns.
        """
        return await run_owned(partial(self._run, fn), interrupt=self.abort, name=name)

    def _run(self, fn: Callable[[], T]) -> T:
        with self._wire.owned():
            return fn()

    def exchange(self, request: h11.Request, body: bytes, addresses: Sequence[Address], timeouts: Timeouts) -> Head:
        """Connect if need be, send the request, and read the response up to its body.

        The read timeout is for the whole head: nothing else ends one that comes a byte a second.
        """
        self.reused = self._open
        self.silent = True
        self._complete = self._surplus = False
        if not self._open:
            with _mapped(httpx.ConnectTimeout, httpx.ConnectError, cut=httpx.ConnectError):
                self._wire.connect(addresses, _deadline(timeouts.connect))
            self._buffer = memoryview(bytearray(READ_SIZE))
            self._open = True
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        with _mapped(httpx.WriteTimeout, httpx.WriteError):
            self._wire.set_timeout(timeouts.write)
            self._wire.send(_encoded(self._http, request, body))
        with _mapped(httpx.ReadTimeout, httpx.ReadError):
            response = self._read_head(_deadline(timeouts.read))
            self._wire.set_timeout(timeouts.read)
        self._patience = timeouts.read
        # h11 has looked at both sides' `Connection` headers and at the version.
        self._kept_alive = self._http.our_state is h11.DONE
        self._length = body_length(request.method, response)
        if self._length == 0:
            self._finish()
        return Head(
            response.status_code,
            response.reason,
            response.http_version,
            response.headers.raw_items(),
            self._length,
        )

    def read_some(self) -> bytes:
        """Wait for the next bytes of the body, whatever frames it; b"" at its end."""
        parts: list[bytes] = []
        with _mapped(httpx.ReadTimeout, httpx.ReadError):
            while not self._complete:
                event = self._http.next_event()
                if isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._finish()
                elif parts:
                    break
                else:
                    self._http.receive_data(bytes(self._buffer[: self._wire.recv_into(self._buffer)]))
        return b"".join(parts)

    def drain(self, sink: Sink) -> int:
        """Read a body of known length to its end, each piece straight into `sink`; returns its length."""
        assert self._length is not None
        # h11 keeps what came along with the head, and is not asked again: the body never passes through it.
        early = memoryview(self._http.trailing_data[0])
        done = min(len(early), self._length)
        if done:
            self._deliver(sink, early[:done])
        pace = Pace(self._patience)
        last = time.monotonic()
        while done < self._length:
            wanted = min(self._length - done, sink.largest)
            begun = time.monotonic()
            with _mapped(httpx.ReadTimeout, httpx.ReadError):
                count = self._wire.recv_into(self._buffer[:wanted])
            now = time.monotonic()
            waited, since, last = now - begun, now - last, now
            if not count:
                raise httpx.RemoteProtocolError(
                    "peer closed connection without sending complete message body "
                    f"(received {done} bytes, expected {self._length})"
                )
            self._deliver(sink, self._buffer[:count])
            done += count
            if pace.too_slow(count, waited) and done < self._length:
                raise httpx.ReadTimeout(f"under {SLOWEST} bytes a second")
            if count < wanted:  # else there may be more already
                self._wire.aborted.wait(lull(count, since))
        self._complete = True
        self._surplus = len(early) > done
        return done

    def _deliver(self, sink: Sink, data: memoryview) -> None:
        # After an abort a read may still return what had come before: nothing is written any more.
        if self._wire.aborted.is_set():
            raise httpx.ReadError("the connection was given up")
        sink.write(data, self._wire.aborted)

    def _read_head(self, deadline: float | None) -> h11.Response:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                return event
            if event is h11.NEED_DATA:
                self._wire.set_timeout(time_left(deadline))
                count = self._wire.recv_into(self._buffer[:HEAD_READ])
                if not count and self.silent:
                    raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
                self.silent = False
                self._http.receive_data(bytes(self._buffer[:count]))

    def _finish(self) -> None:
        self._complete = True
        self._surplus = bool(self._http.trailing_data[0])


def body_length(method: bytes, response: h11.Response) -> int | None:
    """Bytes of a response's body by RFC 9112 section 6.3, None where chunks or the end of the stream tell."""
    headers = dict(response.headers)
    if method == b"HEAD" or response.status_code in (204, 304):
        return 0
    if b"transfer-encoding" in headers or b"content-length" not in headers:
        return None
    return int(headers[b"content-length"])


def _encoded(http: h11.Connection, request: h11.Request, body: bytes) -> bytes:
    events: list[h11.Event] = [request, h11.Data(data=body), h11.EndOfMessage()]
    return b"".join(http.send(event) or b"" for event in events)


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


@contextmanager
def _mapped(
    timeout: type[httpx.TimeoutException],
    failure: type[httpx.NetworkError],
    *,
    cut: type[httpx.TransportError] = httpx.RemoteProtocolError,
) -> Iterator[None]:
    """Let nothing but httpx's own errors out."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error
    except h11.RemoteProtocolError as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    except ssl.SSLEOFError as error:
        raise cut(str(error)) from error
    except OSError as error:
        raise failure(str(error)) from error
