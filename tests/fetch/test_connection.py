"""Cancelling, in every phase and in every way: control back at once, the thread ended, nothing left."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import h11
import pytest

from tests.fetch.clients import Memory, body_of, make_client, sockets, threads
from tests.support.servers import Authority, FullServer, Peer, RawServer
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until, wait_until
from yaie_async.fetch.connection import body_length
from yaie_async.fetch.stop import Stop

pytestmark = pytest.mark.anyio

Work = Callable[[], Coroutine[Any, Any, None]]

PHASES = ["connect", "handshake", "head", "head under TLS", "body", "body under TLS", "busy body"]


@dataclass
class Phase:
    """A server that leaves a client in one phase.

    Attributes:
        reached: whether the client is there.
        gone: whether the server has seen it go.
    """

    url: str
    sink: Memory
    reached: Callable[[], bool]
    gone: Callable[[], bool]


def silent_head(peer: Peer) -> None:
    peer.secure()
    peer.request()
    peer.hang()


def silent_body(peer: Peer) -> None:
    peer.secure()
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
    peer.hang()


def endless_body(peer: Peer) -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    while True:
        peer.send(bytes(100_000))


@contextmanager
def phase(name: str, authority: Authority) -> Iterator[Phase]:
    sink = Memory()
    if name == "connect":
        with FullServer() as full:
            yield Phase(full.url, sink, lambda: threads() == ["yaie_async request"], lambda: True)
        return
    scripts = {"handshake": Peer.hang, "head": silent_head, "body": silent_body, "busy body": endless_body}
    under_tls = name.endswith(" under TLS")
    tls = authority.server("IP:127.0.0.1") if under_tls else None
    script = scripts[name.removesuffix(" under TLS")]
    with RawServer(script, tls=tls) as server:
        url = server.url.replace("http:", "https:") if name == "handshake" else server.url
        if "body" in name:
            yield Phase(url, sink, lambda: sink.calls > 0, lambda: 0 < server.ended == server.accepted)
        elif "head" in name:
            yield Phase(url, sink, lambda: len(server.requests) > 0, lambda: 0 < server.ended == server.accepted)
        else:
            yield Phase(url, sink, lambda: server.accepted > 0, lambda: 0 < server.ended == server.accepted)


async def by_scope(work: Work, reached: Callable[[], bool]) -> float:
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await until(reached)
        await anyio.sleep(0.01)
        watch = Stopwatch()
        group.cancel_scope.cancel()
    return watch.seconds


async def by_timeout(work: Work, reached: Callable[[], bool]) -> float:
    watch = Stopwatch()

    async def expire() -> None:
        nonlocal watch
        await until(reached)
        await asyncio.sleep(0.01)
        watch = Stopwatch()
        limit.reschedule(asyncio.get_running_loop().time())

    expiring = asyncio.create_task(expire())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            await work()
    await expiring
    return watch.seconds


async def by_two_cancels(work: Work, reached: Callable[[], bool]) -> float:
    task = asyncio.create_task(work())
    await until(reached)
    await asyncio.sleep(0.01)
    watch = Stopwatch()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return watch.seconds


@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize("cancel", [by_scope, by_timeout, by_two_cancels])
async def test_a_cancel_returns_at_once_and_leaves_nothing(
    name: str,
    cancel: Callable[[Work, Callable[[], bool]], Awaitable[float]],
    authority: Authority,
    anyio_backend_name: str,
    record_property: Callable[[str, object], None],
) -> None:
    if cancel is not by_scope and anyio_backend_name == "trio":
        return  # trio knows one way only
    before = sockets()
    with phase(name, authority) as entered:
        listening = sockets()
        async with make_client(authority.client(), timeout=30) as client:

            async def work() -> None:
                async with client.stream("GET", entered.url) as response:
                    await body_of(response).drain_into(entered.sink)

            seconds = await cancel(work, entered.reached)
            written = len(entered.sink.data)
            print(f"{name}: control back in {seconds * 1000:.1f} ms")
            record_property("seconds", seconds)
            assert seconds < 1
            await until(lambda: not threads())
            await until(entered.gone)
            await until(lambda: sockets() == listening)
            assert len(entered.sink.data) == written
    await until(lambda: sockets() == before)


@pytest.mark.parametrize("tls", [False, True])
async def test_what_comes_bit_by_bit_is_taken_together(authority: Authority, *, tls: bool) -> None:
    """A thread that is woken for each bit takes the GIL from others thousands of times a second."""
    bits, size = 400, 1000

    def trickle(peer: Peer) -> None:
        peer.secure()
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (bits * size))
        for _ in range(bits):
            time.sleep(0.0002)
            peer.send(bytes(size))
        peer.hang()

    sink = Memory()
    with RawServer(trickle, tls=authority.server("IP:127.0.0.1") if tls else None) as server:
        async with make_client(authority.client()) as client, client.stream("GET", server.url) as response:
            started = time.monotonic()
            await body_of(response).drain_into(sink)
            lasted = time.monotonic() - started
    assert bytes(sink.data) == bytes(bits * size)
    assert sink.calls <= lasted / 0.01 + 3


async def test_a_sink_that_waits_is_woken_by_a_cancel(authority: Authority) -> None:
    class Slow(Memory):
        def write(self, data: memoryview, stopped: Stop) -> None:
            super().write(data, stopped)
            assert stopped.wait(60)

    with phase("busy body", authority) as entered:
        sink = Slow()
        async with make_client() as client:

            async def work() -> None:
                async with client.stream("GET", entered.url) as response:
                    await body_of(response).drain_into(sink)

            assert await by_scope(work, lambda: sink.calls > 0) < 1
            assert sink.calls == 1


async def test_an_iteration_that_is_cancelled_closes_its_connection(authority: Authority) -> None:
    with phase("body", authority) as entered:
        seen: list[bytes] = []
        async with make_client() as client:

            async def iterate() -> None:
                async with client.stream("GET", entered.url) as response:
                    async for part in response.aiter_raw():
                        seen.append(part)

            assert await by_scope(iterate, lambda: bool(seen)) < 1
            await until(entered.gone)
            await until(lambda: not threads())


INTERRUPTED = """
import json, signal, ssl, sys, time
import anyio
from tests.fetch.clients import Memory, body_of, make_client, sockets, threads

url, backend, uvloop, authority, held = sys.argv[1:]

class Held(Memory):
    def write(self, data, stopped):
        super().write(data, stopped)
        time.sleep(float(held))

async def main():
    context = ssl.create_default_context(cafile=authority)
    async with make_client(context, timeout=30) as client:
        print("ready", flush=True)
        async with client.stream("GET", url) as response:
            await body_of(response).drain_into(Held())

before = sockets()
try:
    try:
        anyio.run(main, backend=backend, backend_options={"use_uvloop": True} if uvloop == "True" else {})
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
except KeyboardInterrupt:
    returned = time.monotonic()
    time.sleep(0.02)  # the thread told the loop its result, and has yet to leave its last function
    print(json.dumps({"returned": returned, "threads": threads(), "sockets": sockets() - before}))
"""


@pytest.mark.parametrize(
    ("name", "held"),
    [("connect", 0), ("handshake", 0), ("head", 0), ("body under TLS", 0), ("busy body", 0.3)],
)
@pytest.mark.parametrize(
    ("backend", "uvloop"),
    [("asyncio", False), ("asyncio", True), ("trio", False)],
    ids=["asyncio", "uvloop", "trio"],
)
def test_ctrl_c_twice_ends_the_process_at_once(
    name: str, held: float, backend: str, uvloop: bool, authority: Authority
) -> None:
    """Also while a sink keeps the thread: the second Ctrl-C does not leave that behind."""
    with phase(name, authority) as entered:
        arguments = [entered.url, backend, str(uvloop), str(authority.directory / "ca.pem"), str(held)]
        child = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, *arguments],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            if name in ("handshake", "head"):
                wait_until(entered.reached)
            time.sleep(0.05)  # nobody outside sees a connection that is not answered, or a byte that was read
            started = time.monotonic()
            child.send_signal(signal.SIGINT)
            # Not at the same instant: asyncio loses wake-ups to a Ctrl-C in the middle of its bookkeeping.
            time.sleep(0.05)
            child.send_signal(signal.SIGINT)
            result = json.loads(child.communicate()[0])
        finally:
            child.kill()
            child.wait()
    print(f"{name}: control back in {(result['returned'] - started) * 1000:.1f} ms")
    assert result["returned"] - started < 1
    assert result["threads"] == []
    assert result["sockets"] == 0


@pytest.mark.parametrize(
    ("method", "status", "headers", "length"),
    [
        (b"GET", 200, [("Content-Length", "7")], 7),
        (b"GET", 206, [("Content-Length", "0")], 0),
        (b"GET", 200, [], None),
        (b"GET", 200, [("Transfer-Encoding", "chunked"), ("Content-Length", "7")], None),
        (b"HEAD", 200, [("Content-Length", "7")], 0),
        (b"GET", 204, [], 0),
        (b"GET", 304, [("Content-Length", "7")], 0),
    ],
)
def test_the_length_of_a_body(method: bytes, status: int, headers: list[tuple[str, str]], length: int | None) -> None:
    assert body_length(method, h11.Response(status_code=status, headers=headers)) == length
