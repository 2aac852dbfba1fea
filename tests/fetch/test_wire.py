import socket
import ssl
import threading
import time

import httpx
import pytest

from tests.fetch.clients import drain, make_client, sockets
from tests.support.servers import Authority, FullServer, Peer, RawServer, repeating
from tests.support.waiting import until
from yaie_async.fetch import wire as wire_module
from yaie_async.fetch.wire import Wire

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 10_000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA


def at_localhost(server: RawServer) -> str:
    return f"https://localhost:{server.port}/file"


async def test_a_body_under_tls_is_whole_and_the_connection_is_kept(authority: Authority) -> None:
    names: list[str | None] = []
    tls = authority.server("DNS:localhost", "IP:127.0.0.1")
    tls.sni_callback = lambda _sock, name, _context: names.append(name)
    tls.set_alpn_protocols(["h2", "http/1.1"])
    with RawServer(repeating(ANSWER), tls=tls) as server:
        async with make_client(authority.client()) as client:
            for _ in range(3):
                assert await drain(client, at_localhost(server)) == DATA
            assert (await client.get(at_localhost(server))).content == DATA
        assert server.accepted == 1
        async with make_client(authority.client()) as client:
            assert await drain(client, server.url) == DATA
    assert names == ["localhost", None]  # an address is no name


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_of_tls_work(authority: Authority, version: ssl.TLSVersion) -> None:
    tls = authority.server("DNS:localhost")
    tls.minimum_version = tls.maximum_version = version
    with RawServer(repeating(ANSWER), tls=tls) as server:
        async with make_client(authority.client()) as client:
            for _ in range(2):
                assert await drain(client, at_localhost(server)) == DATA
    assert server.accepted == 1


@pytest.mark.parametrize("fault", ["name", "expired", "unknown authority"])
async def test_a_certificate_that_does_not_fit_is_refused(authority: Authority, fault: str) -> None:
    tls = authority.server(
        "DNS:elsewhere" if fault == "name" else "DNS:localhost", days=-1 if fault == "expired" else 1
    )
    context = ssl.create_default_context() if fault == "unknown authority" else authority.client()
    before = sockets()
    with RawServer(repeating(ANSWER), tls=tls) as server:
        async with make_client(context) as client:
            with pytest.raises(httpx.ConnectError) as caught:
                await client.get(at_localhost(server))
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert not server.requests
        await until(lambda: server.ended == 1)
    await until(lambda: sockets() == before)


async def test_a_context_that_checks_nothing_is_obeyed(authority: Authority) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with RawServer(repeating(ANSWER), tls=authority.server("DNS:elsewhere")) as server:
        async with make_client(context) as client:
            assert await drain(client, server.url) == DATA


async def test_a_server_that_hangs_up_in_the_handshake_or_speaks_no_tls_is_a_connect_error(
    authority: Authority,
) -> None:
    def hang_up(peer: Peer) -> None:
        peer.socket.recv(1)

    def plain(peer: Peer) -> None:
        peer.socket.recv(1)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for script in (hang_up, plain):
        with RawServer(script) as server:
            async with make_client(authority.client()) as client:
                with pytest.raises(httpx.ConnectError):
                    await client.get(at_localhost(server))


async def test_a_silent_handshake_times_out(authority: Authority) -> None:
    with RawServer(Peer.hang) as server:
        async with make_client(authority.client(), timeout=httpx.Timeout(5, connect=0.1)) as client:
            with pytest.raises(httpx.ConnectTimeout):
                await client.get(at_localhost(server))
        await until(lambda: server.ended == 1)


@pytest.mark.parametrize("goodbye", [True, False])
async def test_under_tls_only_a_goodbye_ends_a_body_of_unknown_length(authority: Authority, goodbye: bool) -> None:
    """RFC 9112 section 9.8: otherwise anybody on the way could cut it short."""

    def script(peer: Peer) -> None:
        peer.secure()
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + DATA)
        if goodbye:
            assert isinstance(peer.socket, ssl.SSLSocket)
            peer.socket.unwrap()

    with RawServer(script, tls=authority.server("DNS:localhost")) as server:
        async with make_client(authority.client()) as client:
            if goodbye:
                assert (await client.get(at_localhost(server))).content == DATA
            else:
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.get(at_localhost(server))


async def test_ipv6_works_in_clear_and_under_tls(authority: Authority) -> None:
    with RawServer(repeating(ANSWER), host="::1") as server:
        async with make_client() as client:
            assert await drain(client, server.url) == DATA
    with RawServer(repeating(ANSWER), host="::1", tls=authority.server("IP:::1")) as server:
        async with make_client(authority.client()) as client:
            assert await drain(client, server.url) == DATA


async def test_every_address_is_tried_and_one_that_swallows_packets_does_not_use_up_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FullServer() as full, RawServer(repeating(ANSWER)) as server:
        ports = [int(httpx.URL(full.url).port or 0), 9, server.port]
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports],
        )
        before = sockets()
        async with make_client(timeout=httpx.Timeout(5, connect=2)) as client:
            assert await drain(client, "http://name.example/file") == DATA
            assert sockets() <= before + 2  # both ends of one connection


async def test_a_host_that_nobody_has_is_a_connect_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    async with make_client() as client:
        with pytest.raises(httpx.ConnectError, match="not known"):
            await client.get("http://name.example/file")


async def test_a_slow_look_up_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait(5) and [])
    async with make_client(timeout=httpx.Timeout(5, connect=0.05)) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("http://name.example/file")
    answer.set()


async def test_a_refused_connection_is_a_connect_error() -> None:
    async with make_client() as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.get("http://127.0.0.1:9/")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_an_abort_never_leaves_a_socket_to_a_thread_that_comes_later() -> None:
    before = sockets()
    wire = Wire(None, "127.0.0.1")
    wire.abort()
    with RawServer(repeating(ANSWER)) as server, pytest.raises(ConnectionAbortedError):
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))
        with wire.owned():
            wire.connect([address], None)
    assert sockets() == before


def test_time_left_ends_with_a_timeout() -> None:
    assert wire_module.time_left(None) is None
    assert 0 < (wire_module.time_left(time.monotonic() + 1) or 0) <= 1
    with pytest.raises(TimeoutError):
        wire_module.time_left(time.monotonic())


def test_a_server_sees_an_abort_though_all_it_sent_was_read() -> None:
    """Its send buffer is full, and what is in ours is read before the close. It must not wait for a window to open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire, view = Wire(None, "localhost"), memoryview(bytearray(1 << 20))
        with wire.owned():
            address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", listener.getsockname())
            wire.connect([address], time.monotonic() + 10)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(0.5)
            with pytest.raises(TimeoutError):
                while True:
                    peer.send(bytes(1 << 20))
            with wire.owned():
                wire.abort()
                while wire.recv_into(view):
                    pass
            peer.settimeout(20)
            with pytest.raises(ConnectionError):
                peer.sendall(bytes(1 << 24))
