"""Servers of raw bytes in threads: a script is a function of the connection."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

Script = Callable[["Peer"], None]


class Peer:
    """The server side of one connection."""

    def __init__(self, server: RawServer, sock: socket.socket) -> None:
        self.server = server
        self.socket = sock
        self._early = b""  # bytes received after a head

    def secure(self) -> None:
        """Do the TLS handshake, if the server has a certificate."""
        if self.server.tls is not None:
            self.socket = self.server.tls.wrap_socket(self.socket, server_side=True)

    def request(self) -> bytes:
        """Read the head of one request; b"" if the client has closed the connection."""
        head = b""
        while b"\r\n\r\n" not in head:
            part = self._early or self.socket.recv(65536)
            self._early = b""
            if not part:
                return b""
            head += part
        head, self._early = head.split(b"\r\n\r\n", 1)
        self.server.requests.append(head)
        return head

    def read(self, count: int) -> bytes:
        """Read that many bytes of a request's body."""
        while len(self._early) < count:
            self._early += self.socket.recv(65536)
        body, self._early = self._early[:count], self._early[count:]
        return body

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hang(self) -> None:
        """Send nothing until the client closes the connection."""
        while self.socket.recv(65536):
            pass

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


class RawServer:
    """Runs `script` in a thread for each connection, then closes the connection.

    Attributes:
        accepted: the number of accepted connections.
        requests: the request heads that `Peer.request` has read.
        ended: the number of scripts that have ended.
    """

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.script = script
        self.tls = tls
        self.accepted = 0
        self.ended = 0
        self.requests: list[bytes] = []
        self._socket = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._socket.getsockname()[1]
        authority = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{authority}:{self.port}/file"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="server", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(Peer(self, sock),), name="server", daemon=True).start()

    def _serve(self, peer: Peer) -> None:
        try:
            with suppress(OSError):
                self.script(peer)
        finally:
            with suppress(OSError):
                peer.socket.close()
            self.ended += 1


class FullServer:
    """A listening socket with a full backlog, so that a further connection is never answered."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(0)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/file"
        self._waiting = [socket.socket() for _ in range(4)]

    def __enter__(self) -> Self:
        for sock in self._waiting:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(self._socket.getsockname())
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [*self._waiting, self._socket]:
            sock.close()


def answering(*answers: bytes) -> Script:
    """A server that sends these answers on each connection, one per request, then closes it."""

    def script(peer: Peer) -> None:
        peer.secure()
        for answer in answers:
            if not peer.request():
                break
            peer.send(answer)

    return script


def repeating(answer: bytes) -> Script:
    """A server that sends this answer to every request, and keeps the connection open."""

    def script(peer: Peer) -> None:
        peer.secure()
        while peer.request():
            peer.send(answer)

    return script


@dataclass(frozen=True)
class Authority:
    """A certificate authority for tests, created by the `openssl` command in `directory`."""

    directory: Path
    key_usage: bool = True  # whether it says what its key is for

    def __post_init__(self) -> None:
        self._openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout ca.key"
            " -out ca.pem -days 2 -subj /CN=ca -addext basicConstraints=critical,CA:TRUE",
            *(("-addext", "keyUsage=critical,keyCertSign") if self.key_usage else ()),
        )

    def server(self, *names: str, days: int = 1) -> ssl.SSLContext:
        """Return a server context with these names, such as "DNS:localhost"; with negative `days` it has expired."""
        self._openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout s.key -out s.csr -subj /CN=server"
        )
        (self.directory / "names").write_text(f"subjectAltName={','.join(names)}")
        self._openssl(
            "x509 -req -in s.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out s.pem",
            "-days",
            str(days),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "s.pem", self.directory / "s.key")
        return context

    def client(self) -> ssl.SSLContext:
        """Return a client context that trusts only this authority."""
        return ssl.create_default_context(cafile=str(self.directory / "ca.pem"))

    def _openssl(self, command: str, *more: str) -> None:
        subprocess.run(["openssl", *command.split(), *more], cwd=self.directory, check=True, capture_output=True)
