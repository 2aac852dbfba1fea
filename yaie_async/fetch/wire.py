"""A blocking byte stream over TCP, with or without TLS, that another thread can end at any moment.

TLS runs between two memory buffers, and the socket stays a plain socket. `ssl.SSLSocket` makes one system call for the
header of each record and one for its body, and after a `shutdown` its next `recv_into` returns ciphertext as if it were
data. Here only decrypted bytes can come out, for less CPU time (benchmarks/README.md).
"""

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from yaie_async.fetch.pace import Pace
from yaie_async.fetch.stop import Stop

# One result of `socket.getaddrinfo`: family, kind, protocol, canonical name, the argument of `connect`.
Address = tuple[int, int, int, str, tuple[Any, ...]]

# Bytes. 256 KiB and 1 MiB measured the same. Each TLS connection holds two buffers of this size.
READ_SIZE = 512 * 1024
_NO_DATA = 64 * 1024  # bytes of TLS that may arrive without any data in them: a record has 16 KiB


class Wire:
    """One TCP connection. All methods but `abort` and `is_quiet` block, and are for the one thread inside `owned`."""

    def __init__(self, ssl_context: ssl.SSLContext | None, server_name: str) -> None:
        self.aborted: Stop = Stop()  # set by `abort` or by the first error; the wire can't be used after that
        self._ssl_context = ssl_context
        self._server_name = server_name
        self._socket: socket.socket | None = None
        self._tls: _Tls | None = None
        # Without it `abort` could shut down another file that has just got the same descriptor number.
        self._lock = threading.Lock()
        self._occupied = False

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Use the wire in one thread. If the wire is aborted, this thread closes the socket at the end of the block."""
        with self._lock:
            self._occupied = True
        try:
            yield
        except BaseException:
            self.aborted.set()
            raise
        finally:
            with self._lock:
                self._occupied = False
                if self.aborted.is_set():
                    self._close(reset=True)

    def abort(self) -> None:
        """End the connection from any thread, without blocking. A thread inside `owned` wakes up and closes it."""
        with self._lock:
            self.aborted.set()
            if not self._occupied:
                self._close()
            elif self._socket is not None:
                with suppress(OSError):  # not connected
                    self._socket.shutdown(socket.SHUT_RDWR)

    def connect(self, addresses: Sequence[Address], deadline: float | None) -> None:
        """Connect to the first address that answers, then do the TLS handshake.

        An address that does not answer may only use its share of the time, so that the next ones are tried.
        """
        for number, address in enumerate(addresses, 1):
            left = time_left(deadline)
            try:
                self._connect(address, None if left is None else left / (len(addresses) - number + 1))
                break
            except OSError:
                with self._lock:
                    self._close()
                if number == len(addresses) or self.aborted.is_set():
                    raise
        if self._ssl_context is not None:
            self._tls = _Tls(self._connected(), self._ssl_context, self._server_name)
            self._tls.handshake(deadline)

    def set_timeout(self, seconds: float | None) -> None:
        """Set how long one read from the kernel, or a whole `send`, may wait before it raises `TimeoutError`."""
        self._connected().settimeout(seconds)

    def recv_into(self, view: memoryview, deadline: float | None = None) -> int:
        """Wait for bytes, fill `view` with what has arrived, and return its size; 0 at the end of the stream."""
        return self._connected().recv_into(view) if self._tls is None else self._tls.recv_into(view, deadline)

    def send(self, data: bytes) -> None:
        self._connected().sendall(data if self._tls is None else self._tls.encrypt(data))

    def is_quiet(self) -> bool:
        """Whether the peer has neither closed the connection nor sent unread bytes. Never blocks."""
        if self.aborted.is_set() or self._socket is None or (self._tls is not None and self._tls.has_unread()):
            return False
        poll = select.poll()  # select() can't take descriptors above 1023
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def _connect(self, address: Address, timeout: float | None) -> None:
        family, kind, protocol, _, target = address
        candidate = socket.socket(family, kind, protocol)
        with self._lock:
            self._socket = candidate
        candidate.settimeout(timeout)
        candidate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.aborted.is_set():  # an abort from here on finds the socket
            candidate.connect(target)
        if self.aborted.is_set():
            raise ConnectionAbortedError("the connection was aborted")

    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionAbortedError("the connection is closed")
        return self._socket

    def _close(self, *, reset: bool = False) -> None:
        if self._socket is not None:
            if reset:  # after a FIN a server may wait a minute for a window to open, if all that it sent was read
                with suppress(OSError):  # of a connection that has ended, on some systems
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()
            self._socket = None
        self._tls = None


class _Tls:
    """TLS over a plain socket, through two memory buffers."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        except ValueError as error:
            raise OSError(f"{server_name!r} can't be the name of a server: {error}") from error
        self._records = memoryview(bytearray(READ_SIZE))

    def handshake(self, deadline: float | None) -> None:
        while True:
            self._socket.settimeout(time_left(deadline))
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            except ssl.SSLError:
                with suppress(OSError):
                    self._flush()  # send the alert, so that the server knows why
                raise
            else:
                break
        self._flush()
        if self._session.selected_alpn_protocol() not in (None, "http/1.1"):
            raise ssl.SSLError("the server chose a protocol that was not offered")

    def recv_into(self, view: memoryview, deadline: float | None) -> int:
        filled, empty, pace = 0, 0, Pace(self._socket.gettimeout())
        while filled < len(view):
            try:
                count = self._session.read(len(view) - filled, view[filled:])
            except ssl.SSLWantReadError:
                self._flush()  # in reply to a key update
                if filled:
                    break
                if deadline is not None:
                    self._socket.settimeout(time_left(deadline))
                begun = time.monotonic()
                came = self._receive()
                if empty > _NO_DATA or pace.too_slow(came, time.monotonic() - begun):
                    raise TimeoutError("timed out") from None
                empty += came
                continue
            except ssl.SSLZeroReturnError:
                break
            if not count:
                break
            filled += int(count)
        return filled

    def encrypt(self, data: bytes) -> bytes:
        self._session.write(data)
        return self._outgoing.read()

    def has_unread(self) -> bool:
        return bool(self._session.pending() or self._incoming.pending)

    def _receive(self) -> int:
        count = self._socket.recv_into(self._records)
        if count:
            self._incoming.write(self._records[:count])
        else:
            self._incoming.write_eof()  # the next read raises SSLEOFError, unless TLS's close_notify came before
        return count

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())


def time_left(deadline: float | None) -> float | None:
    """Seconds until `deadline` (of `time.monotonic`), None for no deadline; TimeoutError when it has passed."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
