"""Cancelled in any way, in any phase, on any loop: control comes back at once and nothing stays behind."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fetch.fetching import bodies, fetch, locks_are_free, nothing_is_linked, opened, put
from tests.support.faults import Redirect, Stall
from tests.support.hub import HubServer
from tests.support.servers import FullServer, Peer, RawServer
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until
from yaie_async import Hub
from yaie_async.store.blockmap import BLOCK
from yaie_async.store.claims import resumable_bytes

# Seconds. What is promised is a tenth of that, and printed is what it was.
AT_ONCE = 1.0

Fetch = Callable[[], Coroutine[Any, Any, object]]
Ready = Callable[[], Awaitable[None]]


# Ways: start `fetch`, wait until it hangs where it should, cancel it; return the seconds until control was back.


async def timeout(fetch: Fetch, ready: Ready) -> float:
    async with asyncio.TaskGroup() as group:
        due = asyncio.timeout(None)

        async def limited() -> float:
            with pytest.raises(TimeoutError):
                async with due:
                    await fetch()
            return watch.seconds

        task = group.create_task(limited())
        await ready()
        watch = Stopwatch()
        due.reschedule(asyncio.get_running_loop().time())
        return await task


async def cancel_twice(fetch: Fetch, ready: Ready) -> float:
    task = asyncio.ensure_future(fetch())
    await ready()
    watch = Stopwatch()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return watch.seconds


async def scope(fetch: Fetch, ready: Ready) -> float:
    async with anyio.create_task_group() as group:
        group.start_soon(fetch)
        await ready()
        watch = Stopwatch()
        group.cancel_scope.cancel()
    return watch.seconds


WAYS = [
    pytest.param(way, loop, id=f"{way.__name__}-{loop}")
    for way in (timeout, cancel_twice, scope)
    for loop in ("asyncio", "uvloop", "trio")
    if loop != "trio" or way is scope
]


# Places: a server that says nothing at some point, and how to tell that it has been reached.


@contextmanager
def connecting(hub: HubServer) -> Iterator[Ready]:
    with FullServer() as server:
        hub.faults.add(Redirect(server.url), path="/resolve/.*safetensors$", times=None)

        async def ready() -> None:
            await hub.until(lambda: any(isinstance(request.fault, Redirect) for request in hub.requests))
            await anyio.sleep(0.1)

        yield ready


@contextmanager
def shaking_hands(hub: HubServer) -> Iterator[Ready]:
    with RawServer(Peer.hang) as server:
        hub.faults.add(Redirect(server.url.replace("http:", "https:")), path="/resolve/.*safetensors$", times=None)

        async def ready() -> None:
            await hub.until(lambda: server.accepted)
            await anyio.sleep(0.05)

        yield ready


@contextmanager
def _stalled(hub: HubServer, after: int) -> Iterator[Ready]:
    hub.faults.add(Stall(after), path="^/cdn/", times=None)

    async def ready() -> None:
        await hub.until(lambda: any(one.fault and one.sent >= max(after, 0) for one in hub.requests))
        await anyio.sleep(0.05)

    yield ready


def head(hub: HubServer) -> Any:
    return _stalled(hub, -1)


def first_byte(hub: HubServer) -> Any:
    return _stalled(hub, 0)


def body(hub: HubServer) -> Any:
    return _stalled(hub, 100_000)


@contextmanager
def metadata(hub: HubServer) -> Iterator[Ready]:
    hub.faults.add(Stall(-1), path="^/api/", times=None)

    async def ready() -> None:
        await hub.until(lambda: hub.requests)

    yield ready


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("yaie_async")]


def descriptors(cache: Path) -> list[str]:
    """The files of the cache that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if str(cache) in target:
            found.append(target)
    return found


@pytest.mark.parametrize("place", [connecting, shaking_hands, head, first_byte, body, metadata])
@pytest.mark.parametrize(("way", "loop"), WAYS)
def test_cancelled(
    way: Callable[[Fetch, Ready], Awaitable[float]],
    loop: str,
    place: Any,
    hub_root: Path,
    hub: HubServer,
    tmp_path: Path,
) -> None:
    """Control is back at once; no thread, no descriptor and no lock stays, and the next run is right."""
    content = put(hub_root, BLOCK + 77)
    cache = tmp_path / "cache"
    backend, options = ("trio", {}) if loop == "trio" else ("asyncio", {"use_uvloop": loop == "uvloop"})

    async def main(ready: Ready) -> float:
        async with Hub(endpoint=hub.url, cache_dir=cache) as one:

            async def fetch_it() -> None:
                await one.prefetch("org/big")

            took = await way(fetch_it, ready)
            # While the Hub is open: nothing of the fetch may be left. A thread tells its end just before it ends.
            assert not descriptors(cache)
            await until(lambda: not ours())
            return took

    with place(hub) as ready:
        took = anyio.run(main, ready, backend=backend, backend_options=options)
    print(f"{place.__name__}, {way.__name__}, {loop}: {took * 1000:.1f} ms")
    assert took < AT_ONCE
    locks_are_free(cache)
    nothing_is_linked(cache)
    hub.clear()
    assert anyio.run(fetch, hub, cache) == content


# httpx does not close the generators within its response. trio warns where one is collected before the loop ends.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator object:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("client", ["ours", "theirs"])
@pytest.mark.parametrize(("way", "loop"), WAYS)
def test_nothing_that_came_is_asked_for_again(
    way: Callable[[Fetch, Ready], Awaitable[float]],
    loop: str,
    client: str,
    hub_root: Path,
    hub: HubServer,
    tmp_path: Path,
) -> None:
    """Each attempt begins where the data file ends, within a block too: however little each brings, all is had at last."""
    content = put(hub_root, BLOCK)
    cache = tmp_path / "cache"
    backend, options = ("trio", {}) if loop == "trio" else ("asyncio", {"use_uvloop": loop == "uvloop"})

    async def main(came: int) -> None:
        hub.clear()
        hub.faults.add(Stall(came), path="^/cdn/", times=None)

        async def ready() -> None:
            await hub.until(lambda: any(one.fault and one.sent >= came for one in hub.requests))
            if client == "ours":
                await until(lambda: written(start + came))
            else:  # it gathers a mebibyte before it writes
                await until(lambda: unread(int(hub.url.rpartition(":")[2])) == 0)

        async with AsyncExitStack() as stack:
            given = await stack.enter_async_context(httpx.AsyncClient()) if client == "theirs" else None
            one = await stack.enter_async_context(opened(hub, cache, client=given))
            await way(partial(one.prefetch, "org/big"), ready)

    def written(stop: int) -> bool:
        for path in cache.glob("models--*/blobs/*.incomplete"):
            with suppress(FileNotFoundError):  # a small file, published meanwhile
                if path.read_bytes()[:stop] == content[:stop]:
                    return True
        return False

    def kept() -> int:
        (blobs,) = cache.glob("models--*/blobs")
        return resumable_bytes(blobs, hashlib.sha256(content).hexdigest(), BLOCK)

    start = 0
    for came in (100_000, 1, 300_000):
        anyio.run(main, came, backend=backend, backend_options=options)
        assert {request.range for request in bodies(hub)} == {f"bytes={start}-{BLOCK - 1}" if start else None}
        # What httpx has read from the socket and not yet given to its caller is lost.
        assert kept() == start + came if client == "ours" else start <= kept() <= start + came
        start = kept()
    hub.clear()
    assert anyio.run(fetch, hub, cache, backend=backend, backend_options=options) == content
    assert [request.range for request in bodies(hub)] == [f"bytes={start}-{BLOCK - 1}"]


def unread(port: int) -> int:
    """Bytes from this port that the kernel has and their reader has not."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].partition(":")[2], 16) for row in rows if int(row[2].partition(":")[2], 16) == port)


_CHILD = """
import sys, anyio
from yaie_async import Hub
async def main():
    async with Hub(endpoint=sys.argv[1], cache_dir=sys.argv[2]) as hub:
        await hub.prefetch("org/big")
anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("place", [connecting, shaking_hands, head, body])
def test_ctrl_c_twice(place: Any, loop: str, hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """A script that is interrupted against a silent server ends at once, and the next one goes on."""
    content = put(hub_root, BLOCK + 77)
    with place(hub) as ready:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, hub.url, str(tmp_path / "cache"), loop],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        anyio.run(ready)
        before = time.monotonic()
        child.send_signal(signal.SIGINT)
        time.sleep(0.03)
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
        _, stderr = child.communicate()
        took = time.monotonic() - before
    print(f"{place.__name__}, {loop}: {took * 1000:.0f} ms to the end of the process")
    assert b"KeyboardInterrupt" in stderr and b"Traceback" in stderr
    assert took < 3
    hub.clear()
    assert anyio.run(fetch, hub, tmp_path / "cache") == content
