import gzip
import os
import time

import anyio
import httpx
import pytest

from tests.fetch.clients import Memory, body_of, drain, make_client, sockets, threads
from tests.support.loops import on_one_loop
from tests.support.servers import FullServer, Peer, RawServer, answering, repeating
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until
from yaie_async.fetch.origin import origin_of
from yaie_async.fetch.stop import Stop
from yaie_async.fetch.transport import drainable

pytestmark = pytest.mark.anyio

DATA = os.urandom(3_000_000)


def ok(body: bytes, *headers: str, status: str = "200 OK", version: str = "1.1", length: int | None = None) -> bytes:
    lines = [
        f"HTTP/{version} {status}",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)] + [b""]
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts
    )


# Framing


@pytest.mark.parametrize("size", [0, 1, 70_000, len(DATA)])
async def test_a_body_of_known_length_is_drained_and_iterated_to_the_same_bytes(size: int) -> None:
    with RawServer(repeating(ok(DATA[:size]))) as server:
        async with make_client() as client:
            assert await drain(client, server.url) == DATA[:size]
            assert (await client.get(server.url)).content == DATA[:size]
    assert server.accepted == 1


async def test_a_sink_says_how_much_one_read_asks_for() -> None:
    with RawServer(repeating(ok(DATA))) as server:
        async with make_client() as client, client.stream("GET", server.url) as response:
            sink = Memory()
            sink.largest = 100_000
            await body_of(response).drain_into(sink)
    assert sink.data == DATA
    assert sink.calls >= len(DATA) // 100_000


async def test_chunks_are_joined_and_can_not_be_drained() -> None:
    with RawServer(repeating(chunked(DATA, 10_000))) as server:
        async with make_client() as client:
            for _ in range(2):
                async with client.stream("GET", server.url) as response:
                    assert drainable(response) is None
                    assert await response.aread() == DATA
    assert server.accepted == 1


async def test_a_body_may_end_with_the_connection() -> None:
    with RawServer(answering(b"HTTP/1.1 200 OK\r\n\r\n" + DATA)) as server:
        async with make_client() as client:
            for _ in range(2):
                async with client.stream("GET", server.url) as response:
                    assert drainable(response) is None
                    assert await response.aread() == DATA
    assert server.accepted == 2


async def test_an_encoded_body_is_decoded_by_httpx_and_can_not_be_drained() -> None:
    with RawServer(answering(ok(gzip.compress(DATA), "Content-Encoding: gzip"))) as server:
        async with make_client() as client, client.stream("GET", server.url) as response:
            assert drainable(response) is None
            assert await response.aread() == DATA


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_some_responses_have_no_body_whatever_their_head_says(status: str) -> None:
    answer = ok(b"", status=status, length=5 if status.startswith("304") else 0)
    with RawServer(repeating(answer)) as server:
        async with make_client() as client:
            for _ in range(2):
                assert (await client.get(server.url)).content == b""
    assert server.accepted == 1


async def test_head_has_no_body() -> None:
    with RawServer(repeating(ok(b"", length=1000))) as server:
        async with make_client() as client:
            for _ in range(2):
                response = await client.head(server.url)
                assert response.headers["content-length"] == "1000"
    assert server.accepted == 1


async def test_informational_responses_are_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2
    with RawServer(repeating(early + ok(b"body"))) as server:
        async with make_client() as client:
            assert await drain(client, server.url) == b"body"
            assert await drain(client, server.url) == b"body"
    assert server.accepted == 1


async def test_the_response_carries_what_httpx_expects() -> None:
    with RawServer(answering(ok(b"", "X-One: 1", "x-one: 2", status="206 Partial", version="1.0"))) as server:
        async with make_client() as client:
            response = await client.get(server.url + "?a=b%20c", headers={"Range": "bytes=0-1"})
    assert (response.status_code, response.reason_phrase, response.http_version) == (
        206,
        "Partial",
        "HTTP/1.0",
    )
    assert response.headers.get_list("x-one") == ["1", "2"]
    assert server.requests[0].startswith(b"GET /file?a=b%20c HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Range: bytes=0-1" in server.requests[0]


async def test_redirects_are_httpx_business_and_bodies_of_requests_are_sent() -> None:
    def script(peer: Peer) -> None:
        peer.request()
        assert peer.read(4) == b"data"
        peer.send(b"HTTP/1.1 307 Go\r\nLocation: /other\r\nContent-Length: 3\r\n\r\nabc")
        peer.request()
        peer.send(ok(b"there"))

    with RawServer(script) as server:
        async with make_client() as client:
            response = await client.post(server.url, content=b"data", follow_redirects=True)
            assert response.content == b"there"
    assert server.requests[1].startswith(b"POST /other ")


async def test_a_body_is_read_only_once() -> None:
    with RawServer(answering(ok(b"body"))) as server:
        async with make_client() as client, client.stream("GET", server.url) as response:
            body = body_of(response)
            await body.drain_into(Memory())
            with pytest.raises(httpx.StreamConsumed):
                await body.drain_into(Memory())


# Reuse


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"body", "Connection: close"),
        ok(b"body", version="1.0"),
        ok(b"body") + b"and more than was announced",
        chunked(b"body", 4) + b"and more",
        ok(b"", status="204 No Content") + b"HTTP/1.1 200 OK\r\n",
    ],
    ids=["close", "http/1.0", "surplus", "surplus after chunks", "surplus after none"],
)
async def test_such_a_connection_is_not_used_again(answer: bytes) -> None:
    with RawServer(repeating(answer)) as server:
        async with make_client() as client:
            for _ in range(3):
                assert (await client.get(server.url)).content in (b"body", b"")
    assert server.accepted == 3


async def test_more_bytes_that_come_late_forbid_a_reuse_too() -> None:
    release = anyio.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(ok(DATA))
        peer.send(b"more")
        anyio.from_thread.run_sync(release.set, token=token)
        peer.request()

    token = anyio.lowlevel.current_token()
    with RawServer(script) as server:
        async with make_client() as client:
            for _ in range(2):
                release = anyio.Event()
                assert await drain(client, server.url) == DATA
                await release.wait()
    assert server.accepted == 2


async def test_a_connection_that_the_server_closed_while_idle_is_replaced() -> None:
    with RawServer(answering(ok(b"body"))) as server:
        async with make_client() as client:
            assert await drain(client, server.url) == b"body"
            await until(lambda: server.ended == 1)
            assert await drain(client, server.url) == b"body"
    assert server.accepted == 2


async def test_a_connection_that_is_closed_on_the_next_request_is_replaced() -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(ok(b"body"))
        peer.request()

    with RawServer(script) as server:
        async with make_client() as client:
            assert await drain(client, server.url) == b"body"
            assert await drain(client, server.url) == b"body"
            with pytest.raises(httpx.RemoteProtocolError):  # it may have had an effect
                await client.post(server.url)
    assert server.accepted == 2


async def test_a_response_that_is_closed_unread_closes_its_connection() -> None:
    before = sockets()
    with RawServer(repeating(ok(DATA))) as server:
        async with make_client() as client:
            async with client.stream("GET", server.url):
                pass
            assert await drain(client, server.url) == DATA
        assert server.accepted == 2
        await until(lambda: server.ended == 2)
    await until(lambda: sockets() == before)


async def test_bodies_are_read_at_the_same_time_by_as_many_connections() -> None:
    with RawServer(repeating(ok(DATA))) as server:
        async with make_client(max_connections=2) as client:
            two = anyio.CapacityLimiter(2)

            async def one() -> None:
                async with two:
                    assert await drain(client, server.url) == DATA

            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(one)
    assert server.accepted <= 2
    assert len(server.requests) == 8


async def test_closing_the_client_ends_a_body_that_is_being_read() -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(ok(b"start", length=1000))
        peer.hang()

    with RawServer(script) as server:
        client = make_client()
        sink = Memory()

        async def close() -> None:
            await until(lambda: sink.calls > 0)
            await client.aclose()

        async with anyio.create_task_group() as group, client.stream("GET", server.url) as response:
            group.start_soon(close)
            with pytest.raises(httpx.TransportError):
                await body_of(response).drain_into(sink)
        await until(lambda: server.ended == 1)


# Timeouts


async def test_connecting_times_out() -> None:
    with FullServer() as server:
        async with make_client(timeout=httpx.Timeout(5, connect=0.1)) as client:
            with pytest.raises(httpx.ConnectTimeout):
                await client.get(server.url)
    await until(lambda: not threads())


async def test_a_silent_head_times_out_and_so_does_a_dripping_one() -> None:
    def drip(peer: Peer) -> None:
        peer.request()
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
            peer.send(bytes([byte]))
            time.sleep(0.02)

    for script in (Peer.hang, drip):
        with RawServer(script) as server:
            async with make_client(timeout=httpx.Timeout(5, read=0.15)) as client:
                watch = Stopwatch()
                with pytest.raises(httpx.ReadTimeout):
                    await client.get(server.url)
                assert watch.seconds < 2


@pytest.mark.parametrize("how", ["drain", "iterate"])
async def test_a_silent_body_times_out(how: str) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(ok(b"start", length=1000))
        peer.hang()

    with RawServer(script) as server:
        async with make_client(timeout=httpx.Timeout(5, read=0.1)) as client:
            with pytest.raises(httpx.ReadTimeout):
                await (drain(client, server.url) if how == "drain" else client.get(server.url))
        await until(lambda: server.ended == 1)


async def test_sending_times_out() -> None:
    unread = anyio.Event()

    def script(peer: Peer) -> None:
        anyio.from_thread.run(unread.wait, token=token)

    token = anyio.lowlevel.current_token()
    with RawServer(script) as server:
        async with make_client(timeout=httpx.Timeout(5, write=0.1)) as client:
            with pytest.raises(httpx.WriteTimeout):
                await client.post(server.url, content=bytes(50_000_000))
        unread.set()
        await until(lambda: server.ended == 1)


# Bad input


@pytest.mark.parametrize("how", ["drain", "iterate"])
async def test_a_short_body_is_a_protocol_error(how: str) -> None:
    with RawServer(answering(ok(DATA[:5000], length=len(DATA)))) as server:
        async with make_client() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await (drain(client, server.url) if how == "drain" else client.get(server.url))


@on_one_loop
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"\x16\x03\x01 this is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 300_000,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
    ids=[
        "nothing",
        "half a head",
        "garbage",
        "two lengths",
        "negative",
        "huge",
        "upgrade",
        "unknown framing",
    ],
)
async def test_a_bad_head_is_a_protocol_error(answer: bytes) -> None:
    before = sockets()
    with RawServer(answering(answer)) as server:
        async with make_client() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(server.url)
        await until(lambda: server.ended == server.accepted)
    await until(lambda: sockets() == before)


async def test_a_bad_chunk_is_a_protocol_error() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    with RawServer(answering(answer)) as server:
        async with make_client() as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(server.url)


async def test_a_reset_is_a_read_error() -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(ok(DATA[:100], length=1000))
        peer.socket.recv(1)
        peer.reset()

    class Poking(Memory):
        """Makes the server go on once it has something."""

        def write(self, data: memoryview, stopped: Stop) -> None:
            super().write(data, stopped)
            poke()

    with RawServer(script) as server:
        async with make_client() as client, client.stream("GET", server.url) as response:
            body = body_of(response)

            def poke() -> None:
                body._connection.wire.send(b"x")

            with pytest.raises(httpx.ReadError) as caught:
                await body.drain_into(Poking())
    assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_what_the_sink_raises_comes_out_and_the_connection_is_closed() -> None:
    class Full(Memory):
        def write(self, data: memoryview, stopped: Stop) -> None:
            raise OSError(28, "No space left on device")

    with RawServer(repeating(ok(DATA))) as server:
        async with make_client() as client:
            async with client.stream("GET", server.url) as response:
                with pytest.raises(OSError, match="No space left"):
                    await body_of(response).drain_into(Full())
            await until(lambda: server.ended == 1)
            assert await drain(client, server.url) == DATA


async def test_a_header_that_can_not_be_sent_is_a_local_error() -> None:
    with RawServer(repeating(ok(b"body"))) as server:
        async with make_client() as client:
            with pytest.raises(httpx.LocalProtocolError):
                await client.get(server.url, headers={"X-Bad": "a\nb"})
    assert server.accepted == 0


async def test_only_http_is_spoken() -> None:
    async with make_client() as client:
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("ftp://host/file")
    assert origin_of(str(httpx.URL("https://[::1]/file"))).host == "::1"
    assert origin_of(str(httpx.URL("http://bücher.example/file"))).host == "xn--bcher-kva.example"
