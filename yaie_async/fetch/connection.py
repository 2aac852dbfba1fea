"""One HTTP/1.1 connection: sends a request, then reads the head and the body of the response, in owned threads."""

import itertools
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import h11
import httpx

from yaie_async.core.threads import run_owned
from yaie_async.fetch.origin import Origin
from yaie_async.fetch.pace import SLOWEST, Pace, lull
from yaie_async.fetch.stop import Stop
from yaie_async.fetch.wire import READ_SIZE, Address, Wire, time_left

T = TypeVar("T")

# Bytes, as in httpcore. CDNs send heads of several KiB (policies, signed cookies), but never this much.
MAX_HEAD = 100 * 1024
# Bytes. h11 copies what arrives together with the head, so only this much of the body may come with it.
HEAD_READ = 64 * 1024
MAX_HINTS = 20  # interim responses (1xx) before the final one


class Sink(Protocol):
    """Where a body is written to."""

    largest: int  # the most bytes that one read should ask for, because of a rate limit

    def write(self, data: memoryview, stopped: Stop) -> None:
        """Take bytes that are valid during the call only. A wait ends with `stopped`, the drain with an exception."""


class Connection:
    """A connection for one request at a time."""

    _numbers = itertools.count(1)

    def __init__(self, origin: Origin, ssl_context: ssl.SSLContext) -> None:
        self.origin = origin
        self.track: str = f"connection {next(self._numbers)} to {origin.host}"  # its name in a trace
        self.is_open: bool = False
        self.reused: bool = False  # whether it has carried a request before the current one
        self.silent: bool = True  # whether no byte of the current response has arrived
        self.length: int | None = None  # of the current body; None if it ends with a last chunk or with the connection
        self.wire: Wire = Wire(ssl_context if origin.scheme == "https" else None, origin.host)
        self._http: h11.Connection
        self._pace = Pace(None)  # of the current body
        self._kept_alive = False  # by both sides, and no more bytes followed the body
        self._complete = False  # the body was read to its end
        self._buffer = memoryview(b"")

    def is_reusable(self) -> bool:
        """Whether the response was read to its end, with no more bytes by then, and both sides keep the connection."""
        # `Wire.is_quiet` finds bytes that arrive later.
        return self._complete and self._kept_alive and not self.wire.aborted.is_set()

    async def run(self, fn: Callable[[], T], name: str) -> T:
        """Run one of the blocking methods below in a thread.

        **Cancellation:** the socket is shut down, the thread closes it and ends, then control returns.

        **Raises:** what `fn` raises.
        """

        def owned() -> T:
            with self.wire.owned():
                return fn()

        return await run_owned(owned, interrupt=self.wire.abort, name=name)

    def exchange(self, request: httpx.Request, addresses: Sequence[Address], timeouts: httpx.Timeout) -> h11.Response:
        """Connect if necessary, send the request, and read the response up to its body.

        The read timeout is for the whole head. Otherwise a head of one byte a second would never time out.
        """
        self.reused = self.is_open
        self.silent = True
        self._complete = False
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        with _mapped(httpx.WriteTimeout, httpx.WriteError):
            head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
            events: list[h11.Event] = [head, h11.Data(data=request.content), h11.EndOfMessage()]
            sent = b"".join(self._http.send(event) or b"" for event in events)
        if not self.is_open:
            with _mapped(httpx.ConnectTimeout, httpx.ConnectError, cut=httpx.ConnectError):
                self.wire.connect(addresses, _deadline(timeouts.connect))
            self._buffer = memoryview(bytearray(READ_SIZE))
            self.is_open = True
        with _mapped(httpx.WriteTimeout, httpx.WriteError):
            self.wire.set_timeout(timeouts.write)
            self.wire.send(sent)
        with _mapped(httpx.ReadTimeout, httpx.ReadError):
            response = self._read_head(_deadline(timeouts.read))
            self.wire.set_timeout(timeouts.read)
        self._pace = Pace(timeouts.read)
        # h11 has looked at the `Connection` headers of both sides and at the version.
        self._kept_alive = self._http.our_state is h11.DONE
        self.length = body_length(request.method.encode(), response)
        if self.length == 0:
            self._finish()
        return response

    def read_some(self) -> bytes:
        """Wait for the next bytes of the body, with any framing; b"" at its end. `content.pieces` checks its pace."""
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
                    self._http.receive_data(bytes(self._buffer[: self.wire.recv_into(self._buffer)]))
        return b"".join(parts)

    def drain(self, sink: Sink) -> int:
        """Read a body of known length to its end, each piece straight into `sink`; return its length."""
        length = self.length
        assert length is not None
        # h11 keeps the bytes that arrived together with the head. The rest of the body never passes through h11.
        early = memoryview(self._http.trailing_data[0])
        done = min(len(early), length)
        if done:
            self._deliver(sink, early[:done])
        last = time.monotonic()
        while done < length:
            wanted = min(length - done, sink.largest)
            begun = time.monotonic()
            with _mapped(httpx.ReadTimeout, httpx.ReadError):
                count = self.wire.recv_into(self._buffer[:wanted])
            now = time.monotonic()
            waited, since, last = now - begun, now - last, now
            if not count:
                raise httpx.RemoteProtocolError(f"the server closed the connection after {done} of {length} bytes")
            self._deliver(sink, self._buffer[:count])
            done += count
            if done < length and self._pace.too_slow(count, waited):
                raise httpx.ReadTimeout(f"under {SLOWEST} bytes a second")
            if count < wanted:  # else more bytes may have arrived already
                self.wire.aborted.wait(lull(count, since))
        self._complete = True
        self._kept_alive &= len(early) <= done
        return done

    def _deliver(self, sink: Sink, data: memoryview) -> None:
        # After an abort a read may still return bytes that arrived before it. They are not written.
        if self.wire.aborted.is_set():
            raise httpx.ReadError("the connection was aborted")
        sink.write(data, self.wire.aborted)

    def _read_head(self, deadline: float | None) -> h11.Response:
        hints = 0
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Response):
                return event
            if (hints := hints + isinstance(event, h11.InformationalResponse)) > MAX_HINTS:
                raise httpx.RemoteProtocolError(f"more than {MAX_HINTS} interim responses")
            if event is h11.NEED_DATA:
                self.wire.set_timeout(time_left(deadline))
                count = self.wire.recv_into(self._buffer[:HEAD_READ], deadline)
                if not count and self.silent:
                    raise httpx.RemoteProtocolError("the server closed the connection without a response")
                self.silent = False
                self._http.receive_data(bytes(self._buffer[:count]))

    def _finish(self) -> None:
        self._complete = True
        self._kept_alive &= not self._http.trailing_data[0]


def body_length(method: bytes, response: h11.Response) -> int | None:
    """Bytes of a response's body by RFC 9112 section 6.3; None for chunks, or a body that ends with the connection."""
    headers = dict(response.headers)
    if method == b"HEAD" or response.status_code in (204, 304):
        return 0
    if b"transfer-encoding" in headers or b"content-length" not in headers:
        return None
    return int(headers[b"content-length"])


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


@contextmanager
def _mapped(
    timeout: type[httpx.TimeoutException],
    failure: type[httpx.NetworkError],
    *,
    cut: type[httpx.TransportError] = httpx.RemoteProtocolError,
) -> Iterator[None]:
    """Map every low-level error to one of httpx."""
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
