"""Which way requests go: a client of the user's, proxies, IPv6; and who sees which credentials."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anyio
import httpx
import pytest

from tests.fetch.fetching import bodies, fetch, put, sent
from tests.support.faults import Redirect
from tests.support.hub import HubServer
from tests.support.programs import skip_without
from yaie_async import HubUnavailableError
from yaie_async.fetch import transport
from yaie_async.localhub import running

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def weights(hub_root: Path) -> bytes:
    return put(hub_root)


class Proxy(socketserver.StreamRequestHandler):
    """Passes a connection on to where its first bytes say; notes where that was."""

    seen: ClassVar[list[str]] = []

    def target(self) -> tuple[str, int, bytes]:
        raise NotImplementedError

    def handle(self) -> None:
        host, port, first = self.target()
        self.seen.append(host)
        with suppress(OSError), socket.create_connection((host, port)) as upstream:
            upstream.sendall(first)
            back = threading.Thread(target=_pump, args=(upstream, self.connection), daemon=True)
            back.start()
            _pump(self.connection, upstream)
            back.join(60)


class HttpProxy(Proxy):
    """A forward proxy for plain HTTP, one origin a connection."""

    rbufsize = 0

    def target(self) -> tuple[str, int, bytes]:
        head = b""
        while b"\r\n\r\n" not in head:
            part = self.connection.recv(65536)
            if not part:
                return "", 0, b""
            head += part
        url = urlsplit(head.split(b" ", 2)[1].decode())
        assert url.hostname is not None and url.port is not None
        path = head.split(b" ", 2)[1].decode().split(url.netloc, 1)[1].encode()
        method, _, rest = head.split(b" ", 2)
        # One request a connection: the next may be for another origin.
        first, others = rest.split(b"\r\n", 1)
        others = b"\r\n".join(line for line in others.split(b"\r\n") if not line.lower().startswith(b"connection:"))
        return url.hostname, url.port, method + b" " + path + b" " + first + b"\r\nConnection: close\r\n" + others


class SocksProxy(Proxy):
    """SOCKS5 without authentication."""

    rbufsize = 0

    def target(self) -> tuple[str, int, bytes]:
        _, count = self.rfile.read(2)
        self.rfile.read(count)
        self.wfile.write(b"\x05\x00")
        _, _, _, kind = self.rfile.read(4)
        host = socket.inet_ntoa(self.rfile.read(4)) if kind == 1 else self.rfile.read(self.rfile.read(1)[0]).decode()
        port = int.from_bytes(self.rfile.read(2), "big")
        self.wfile.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return host, port, b""


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def proxy(handler: type[Proxy]) -> Iterator[int]:
    handler.seen.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("variable", "scheme", "handler"),
    [
        ("HTTP_PROXY", "http", HttpProxy),
        ("http_proxy", "http", HttpProxy),
        ("ALL_PROXY", "http", HttpProxy),
        ("ALL_PROXY", "socks5", SocksProxy),
        ("HTTP_PROXY", "socks5", SocksProxy),
    ],
)
async def test_a_proxy_takes_metadata_and_bodies(
    variable: str,
    scheme: str,
    handler: type[Proxy],
    hub: HubServer,
    weights: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the environment, HTTP or SOCKS: the hub's and the CDN's bytes all pass it, by ranges as ever."""
    with proxy(handler) as port:
        monkeypatch.setenv(variable, f"{scheme}://127.0.0.1:{port}")
        assert await fetch(hub, tmp_path) == weights
        assert set(Proxy.seen) == {"127.0.0.1", "127.0.0.2"}
    assert len(bodies(hub)) >= 4 and sent(hub) == len(weights)


async def test_what_no_proxy_names_goes_direct(
    hub: HubServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CDN by NO_PROXY over our own transport, the hub through the proxy."""
    used: list[str] = []
    send = transport.DrainTransport.handle_async_request

    async def note(self: Any, request: httpx.Request) -> httpx.Response:
        used.append(request.url.host)
        return await send(self, request)

    monkeypatch.setattr(transport.DrainTransport, "handle_async_request", note)
    with proxy(HttpProxy) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.2")
        assert await fetch(hub, tmp_path) == weights
        assert set(Proxy.seen) == {"127.0.0.1"}
    assert set(used) == {"127.0.0.2"}


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_is_down_is_named_as_the_cause(
    scheme: str, hub: HubServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing goes around it."""
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://127.0.0.1:9")
    with pytest.raises(HubUnavailableError, match="prox"):
        await fetch(hub, tmp_path)
    assert not hub.requests


@pytest.mark.parametrize(
    ("options", "token"),
    [
        (None, "secret"),
        ({"headers": {"Authorization": "Bearer secret"}}, False),
        ({"auth": ("user", "secret")}, "secret"),
    ],
    ids=["our-client", "client-with-header", "client-with-auth"],
)
def test_credentials_stay_with_the_hub(options: Any, token: Any, hub_root: Path, tmp_path: Path) -> None:
    """Neither the token nor what the user's client carries is sent to a CDN, or to a host on the way to it."""
    content = put(hub_root)
    _seen.clear()

    async def main() -> None:
        if options is None:
            assert await fetch(hub, tmp_path, token=token) == content
            return
        async with httpx.AsyncClient(**options) as client:
            assert await fetch(hub, tmp_path, token=token, client=client) == content
            assert not client.is_closed

    with HubServer(hub_root, tokens=("secret",)) as hub, running(_redirect_to(hub)) as middle:
        # Hub -> another host -> the Hub again -> its CDN.
        hub.faults.add(Redirect(f"{middle}/hop"), path="/resolve/.*safetensors$")
        anyio.run(main)
        assert _seen and set(_seen) == {None}
        for request in hub.requests:
            assert request.authorization == (None if request in bodies(hub) else "Bearer secret"), request.path


_seen: list[str | None] = []


def _redirect_to(hub: HubServer) -> Any:
    """A host that sends whoever comes back to the hub's file, noting what credentials they showed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        _seen.append(headers.get("authorization"))
        commit = next(one.path.split("/")[4] for one in hub.requests if "/resolve/" in one.path)
        target = f"{hub.url}/org/big/resolve/{commit}/model.safetensors"
        head = [(b"location", target.encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 307, "headers": head})
        await send({"type": "http.response.body"})

    return app


def test_over_ipv6(hub_root: Path, tmp_path: Path) -> None:
    """Hub and bodies at `[::1]`."""
    content = put(hub_root)
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        skip_without("the IPv6 loopback address", "iproute2")
    with HubServer(hub_root, cdn=False) as hub, running(hub._serve, host="::1") as url:
        hub.url = url
        assert anyio.run(fetch, hub, tmp_path) == content
        assert all(request.host.startswith("[::1]") for request in hub.requests)
