"""Servers that send a little for ever: every phase of a request ends in time, on both transports."""

import itertools
import ssl
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fetch.clients import Memory, body_of, make_client
from tests.fetch.fetching import opened
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from tests.support.servers import Authority, Peer, RawServer, Script
from yaie_async import GatedModelError
from yaie_async.fetch.content import content
from yaie_async.fetch.failures import Asked, TransientError
from yaie_async.fetch.http import answer

pytestmark = pytest.mark.anyio

ASKED = Asked("org/big", "main", None, has_token=False)
HEAD = b"HTTP/1.1 200 OK\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
LENGTH = b"Content-Length: 1000000\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


def slowly(data: Iterable[int]) -> Iterator[bytes]:
    for byte in data:
        time.sleep(0.02)
        yield bytes([byte])


def dripping(at_once: bytes, then: bytes = b"x") -> Script:
    """A server that sends some bytes at once, and others for ever, one by one."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(at_once)
        for byte in slowly(itertools.cycle(then)):
            peer.send(byte)

    return script


def hinting(peer: Peer) -> None:
    peer.request()
    while True:
        peer.send(HINT)


SLOW = {
    "head": dripping(HEAD + b"X: "),
    "hints": hinting,
    "slow hints": dripping(b"", HINT),
    "body": dripping(HEAD + LENGTH),
    "framing": dripping(HEAD + CHUNKED + b"5;"),
    "trailers": dripping(HEAD + CHUNKED + b"0\r\nX: "),
    "small chunks": dripping(HEAD + CHUNKED, b"1\r\nx\r\n"),
    "gzip": dripping(HEAD + b"Content-Encoding: gzip\r\n" + LENGTH + b"\x1f\x8b\x08\x08\0\0\0\0\0\xff"),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("body", [False, True], ids=["stock", "ours"])
async def test_what_never_ends_is_given_up(
    name: str, body: bool, anyio_backend: Any, hub: HubServer, tmp_path: Path
) -> None:
    """Whatever part of the answer it is, and however few bytes it takes to keep a read from timing out."""
    with RawServer(SLOW[name]) as server, anyio.fail_after(5):
        async with opened(hub, tmp_path) as one:
            with pytest.raises(TransientError) as caught:
                async with answer(one.session, "GET", server.url, asked=ASKED, timeout=0.2, body=body) as response:
                    await content(response, 1 << 20, 0.2)
    assert caught.value.kind == ("read" if (name, body) == ("hints", True) else "stall")


@on_one_loop
async def test_a_refusal_that_never_ends(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """Its status is what counts, and what it says beyond is not waited for."""
    refusal = dripping(b"HTTP/1.1 403 Forbidden\r\n" + LENGTH)
    with RawServer(refusal) as server, anyio.fail_after(5):
        async with opened(hub, tmp_path, endpoint=server.url.removesuffix("/file")) as one:
            with pytest.raises(GatedModelError):
                async with answer(one.session, "GET", server.url, asked=ASKED, timeout=0.2):
                    pass


@on_one_loop
async def test_a_slow_answer_is_waited_for(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """What is well above the rate of silence is read to its end, for longer than one timeout."""

    def slow(peer: Peer) -> None:
        peer.request()
        peer.send(HEAD + b"Content-Length: 4000\r\n\r\n")
        for _ in range(40):
            time.sleep(0.01)
            peer.send(bytes(100))

    for body in (False, True):
        with RawServer(slow) as server:
            async with (
                opened(hub, tmp_path) as one,
                answer(one.session, "GET", server.url, asked=ASKED, timeout=0.2, body=body) as response,
            ):
                assert await content(response, 4000, 0.2) == bytes(4000)


@on_one_loop
async def test_a_fast_answer_that_never_ends(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """An endless body above the lowest rate is given up too, after ten times the timeout."""

    def endless(peer: Peer) -> None:
        peer.request()
        peer.send(HEAD + CHUNKED)
        while True:
            time.sleep(0.002)
            peer.send(b"a\r\n0123456789\r\n")

    with RawServer(endless) as server, anyio.fail_after(5):
        async with opened(hub, tmp_path) as one:
            with pytest.raises(TransientError, match="in time"):
                async with answer(one.session, "GET", server.url, asked=ASKED, timeout=0.03) as response:
                    await content(response, 1 << 20, 0.03)


def encrypted(peer: Peer, at_once: bytes, record: bytes, *, pause: float = 0.02) -> None:
    """Send some bytes under TLS at once, then a record whose ciphertext comes byte by byte."""
    assert peer.server.tls is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = peer.server.tls.wrap_bio(incoming, outgoing, server_side=True)

    def wait_for(step: Any) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                peer.send(outgoing.read())
                incoming.write(peer.socket.recv(65536))
            finally:
                if outgoing.pending:
                    peer.send(outgoing.read())

    wait_for(session.do_handshake)
    wait_for(partial(session.read, 65536))
    if at_once:
        session.write(at_once)
        peer.send(outgoing.read())
    session.write(record)
    for byte in outgoing.read():
        time.sleep(pause)
        peer.send(bytes([byte]))


@on_one_loop
@pytest.mark.parametrize("at_once", [b"", HEAD + LENGTH, HEAD + CHUNKED], ids=["head", "body", "chunk"])
async def test_a_record_that_never_ends(at_once: bytes, anyio_backend: Any, authority: Authority) -> None:
    """Under TLS bytes may arrive for long before any of them can be read."""
    script = partial(encrypted, at_once=at_once, record=HEAD + bytes(16000))
    with RawServer(script, tls=authority.server("IP:127.0.0.1")) as server, anyio.fail_after(5):
        async with make_client(authority.client(), timeout=0.2) as client:
            with pytest.raises(httpx.ReadTimeout):
                async with client.stream("GET", server.url) as response:
                    async for _ in response.aiter_raw():
                        pass
            if at_once.endswith(LENGTH):
                with pytest.raises(httpx.ReadTimeout):
                    async with client.stream("GET", server.url) as response:
                        await body_of(response).drain_into(Memory())


@on_one_loop
async def test_a_record_that_is_slow(anyio_backend: Any, authority: Authority) -> None:
    """A line on which one record takes longer than the timeout is slow, not silent."""
    script = partial(encrypted, at_once=HEAD + b"Content-Length: 300\r\n\r\n", record=bytes(300), pause=0.001)
    with RawServer(script, tls=authority.server("IP:127.0.0.1")) as server:
        async with make_client(authority.client(), timeout=0.1) as client:
            sink = Memory()
            async with client.stream("GET", server.url) as response:
                await body_of(response).drain_into(sink)
            assert len(sink.data) == 300
