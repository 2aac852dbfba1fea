"""Tests of the connections of the server: half-open, slow and too many clients."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.support.renamed import renamed
from tests.support.waiting import wait_until
from yaie_async.localhub import LocalHub, connections, running, server
from yaie_async.localhub.models import Snapshot

GET = b"GET /org/name/resolve/main/%b HTTP/1.1\r\nHost: hub\r\n\r\n"
BODY = b"POST /api/models/org/name/paths-info/main HTTP/1.1\r\nHost: hub\r\nContent-Length: 9\r\n\r\n"


class Holding:
    """An application that keeps each request until `release` is set, and then answers it."""

    def __init__(self) -> None:
        self.asked = 0
        self.release = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await anyio.to_thread.run_sync(self.release.wait)
        await Response("done")(scope, receive, send)


@pytest.fixture
def big(hub_root: Path) -> Path:
    """A file larger than what the sockets of a connection can hold."""
    file = hub_root / "org/name/model.safetensors"
    os.truncate(file, 64 << 20)
    return file


Connect = Callable[..., socket.socket]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Opens connections to a server, which have sent something."""
    with contextlib.ExitStack() as stack:

        def connected(url: str, sent: bytes = b"", address: str = "") -> socket.socket:
            connection = stack.enter_context(socket.socket())
            connection.settimeout(30)
            connection.bind((address, 0))
            connection.connect((urlsplit(url).hostname, urlsplit(url).port))
            connection.sendall(sent)
            return connection

        yield connected


def read(connection: socket.socket, most: int = 64 << 20) -> bytes:
    """All that comes until the server closes the connection, or drops it; at most as many bytes."""
    found = bytearray()
    with contextlib.suppress(ConnectionError):
        while len(found) < most and (chunk := connection.recv(1 << 20)):
            found += chunk
    return bytes(found)


def is_open(file: Path) -> bool:
    """Whether this process, which the server runs in, has the file open."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(descriptor.readlink())
    return file in links


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: ", BODY, BODY + b"{"])
def test_a_client_without_a_whole_request_is_dropped(
    hub_root: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """One that sends nothing, half a head, or a head and half a body."""
    monkeypatch.setattr(connections, "_PATIENCE", 0.1)
    with running(LocalHub(hub_root)) as url:
        assert read(connect(url, sent)) == b""


def test_a_head_that_comes_byte_by_byte_is_dropped(
    hub_root: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes do not begin the time anew: it is for the whole request."""
    monkeypatch.setattr(connections, "_PATIENCE", 0.1)
    with running(LocalHub(hub_root)) as url:
        connection = connect(url, b"GET / HTTP/1.1\r\nX: ")
        connection.settimeout(0.01)
        with contextlib.suppress(ConnectionError):
            while True:
                connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    assert connection.recv(1) == b""
                    break


def test_an_idle_client_is_dropped_and_a_waiting_one_is_not(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes its time for an answer does not hold that against its client."""
    monkeypatch.setattr(connections, "_PATIENCE", 0.1)
    holding = Holding()
    with running(holding) as url:
        waits = connect(url, GET % b"a")
        wait_until(lambda: holding.asked)
        for _ in range(2):
            assert read(connect(url)) == b""
        holding.release.set()
        # All of its time after the answer is its own again: it is dropped then.
        assert read(waits).endswith(b"done")


def test_a_request_may_begin_before_the_one_before_it_has_ended(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the first is no reason to drop a client whose second one is being answered."""
    monkeypatch.setattr(connections, "_PATIENCE", 0.1)
    begun, second = threading.Event(), Holding()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/second":
            begun.set()
            await second(scope, receive, send)
        else:
            await Response("done")(scope, receive, send)
            await anyio.to_thread.run_sync(begun.wait)

    with running(app) as url:
        client = connect(url, b"GET /first HTTP/1.1\r\nHost: hub\r\n\r\nGET /second HTTP/1.1\r\nHost: hub\r\n\r\n")
        wait_until(lambda: second.asked)
        for _ in range(2):
            assert read(connect(url)) == b""
        second.release.set()
        assert read(client).count(b"done") == 2


def test_a_client_that_does_not_read_is_dropped(
    hub_root: Path, big: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is closed with the connection; nothing waits for the client to read what was written."""
    monkeypatch.setattr(connections, "_PATIENCE", 0.2)
    with running(LocalHub(hub_root)) as url:
        reader = connect(url, GET % b"model.safetensors")
        reader.recv(10)
        assert is_open(big)
        wait_until(lambda: not is_open(big))
        assert len(read(reader)) < 32 << 20


@pytest.mark.usefixtures("big")
def test_a_client_that_reads_slowly_is_served(
    hub_root: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is for a chunk and not for the body, which takes several times as long here."""
    monkeypatch.setattr(connections, "_PATIENCE", 0.3)
    with running(LocalHub(hub_root)) as url:
        reader = connect(url, b"GET /org/name/resolve/main/model.safetensors HTTP/1.1\r\nRange: bytes=0-3000000\r\n"
                         b"Host: hub\r\nConnection: close\r\n\r\n")  # fmt: skip
        pause, got = threading.Event(), 0
        while chunk := reader.recv(100_000):
            got += len(chunk)
            pause.wait(len(chunk) / 3e6)
        assert got > 3_000_000


@pytest.mark.usefixtures("big")
def test_listings_leave_threads_to_bodies(hub_root: Path, connect: Connect) -> None:
    """A body goes on while more clients wait for the disk's listings than there are threads."""
    hub, listed, slow = LocalHub(hub_root), threading.Event(), threading.Event()
    snapshot = hub._models.snapshot

    def slowly(model: str, revision: str) -> Snapshot:
        listed.set()
        slow.wait()
        return snapshot(model, revision)

    with running(hub) as url:
        try:
            reader = connect(url, GET % b"model.safetensors")
            assert reader.recv(8) == b"HTTP/1.1"
            hub._models.snapshot = slowly  # type: ignore[method-assign]
            waiting = [connect(url, GET % b"config.json") for _ in range(50)]
            listed.wait()
            reader.settimeout(5)
            assert len(read(reader, 32 << 20)) >= 32 << 20
        finally:
            slow.set()
        assert waiting[-1].recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(("sent", "grace"), [(b"", 60.0), (b"GET / HTTP", 60.0), (BODY, 0.0)])
def test_a_client_without_a_whole_request_makes_room(
    hub_root: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch, sent: bytes, grace: float
) -> None:
    """The one that is there for longest, and only when it is needed; at once if it has not asked for anything."""
    monkeypatch.setattr(connections, "_MOST", 3)
    monkeypatch.setattr(connections, "_GRACE", grace)
    with running(LocalHub(hub_root)) as url:
        half_open = [connect(url, sent) for _ in range(3)]
        wait_until(lambda: httpx.get(f"{url}/api/models/org/name").status_code == 200)
        assert read(half_open[0]) == b""
        for connection in half_open[1:]:
            connection.settimeout(0.01)
            with pytest.raises(TimeoutError):
                connection.recv(1)


@pytest.mark.usefixtures("big")
def test_a_client_that_does_not_read_makes_room(
    hub_root: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once: all clients wait for a moment now and then. Until then a new one is asked to come again."""
    monkeypatch.setattr(connections, "_MOST", 2)
    with running(LocalHub(hub_root)) as url:
        readers = [connect(url, GET % b"model.safetensors") for _ in range(2)]
        for reader in readers:
            assert reader.recv(10) == b"HTTP/1.1 2"
        assert httpx.get(f"{url}/api/models/org/name").status_code == 429
        monkeypatch.setattr(connections, "_GRACE", 0)
        wait_until(lambda: httpx.get(f"{url}/api/models/org/name").status_code == 200)
        # The other one has its body still: it is longer than what its connection held.
        assert sorted(len(read(reader, 32 << 20)) < 32 << 20 for reader in readers) == [False, True]


@pytest.mark.usefixtures("big")
def test_an_address_with_more_than_half_of_the_places_makes_room(
    hub_root: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For others, at once, until it has half; its own new clients never take the place of another address."""
    monkeypatch.setattr(connections, "_MOST", 4)
    monkeypatch.setattr(connections, "_GRACE", 60)
    ask = GET % b"model.safetensors"
    with running(LocalHub(hub_root)) as url:
        readers = [connect(url, ask) for _ in range(4)]
        for reader in readers:
            assert reader.recv(10) == b"HTTP/1.1 2"
        assert connect(url).recv(12) == b"HTTP/1.1 429"
        others = [connect(url, ask, "127.0.0.2") for _ in range(2)]
        for other in others:
            assert other.recv(12) == b"HTTP/1.1 200"
        assert connect(url, address="127.0.0.3").recv(12) == b"HTTP/1.1 429"
        assert connect(url).recv(12) == b"HTTP/1.1 429"
        for other in others:
            assert len(read(other, 32 << 20)) >= 32 << 20


def test_an_address_that_keeps_the_server_at_work_makes_room_for_others(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 500 requests for a file that is being hashed: the youngest goes first, until the address has half."""
    monkeypatch.setattr(connections, "_MOST", 4)
    holding = Holding()
    with running(holding) as url:
        crowd = [connect(url, GET % b"a") for _ in range(4)]
        wait_until(lambda: holding.asked == 4)
        others = []
        for youngest in (crowd[3], crowd[2]):
            others.append(connect(url, GET % b"a", "127.0.0.2"))
            assert read(youngest) == b""
        wait_until(lambda: holding.asked == 6)
        for address in ("127.0.0.1", "127.0.0.3"):
            assert connect(url, address=address).recv(12) == b"HTTP/1.1 429"
        holding.release.set()
        for connection in crowd[:2] + others:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_where_the_server_is_at_work_for_all_a_new_client_is_refused(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 429, and when to come again; those that are there are served."""
    monkeypatch.setattr(connections, "_MOST", 3)
    monkeypatch.setattr(connections, "_GRACE", 0)
    holding = Holding()
    with running(holding) as url:
        at_work = [connect(url, GET % b"a") for _ in range(3)]
        wait_until(lambda: holding.asked == 3)
        refused = httpx.get(url)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        holding.release.set()
        for connection in at_work:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        assert httpx.get(url).text == "done"


def test_a_closed_connection_leaves_its_place(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """More clients than there are places are served one after another."""
    monkeypatch.setattr(connections, "_MOST", 1)
    holding = Holding()
    holding.release.set()
    with running(holding) as url:
        for _ in range(3):
            client = connect(url, b"GET / HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n")
            assert read(client).endswith(b"done")


@pytest.mark.parametrize(
    ("files", "most"),
    [(128, 32), (1024, 480), (1 << 20, 512), (resource.RLIM_INFINITY, 512), (64, 1)],
)
def test_connections_are_as_many_as_files_may_be_open(monkeypatch: pytest.MonkeyPatch, files: int, most: int) -> None:
    """Each has a descriptor of its own and one of its file, and some are kept for the rest."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connections.most_connections() == most


def test_a_uvicorn_with_another_name_for_its_protocol(
    hub_root: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are bounded by uvicorn itself then, which answers 503."""
    names = {"http_protocol_class": "protocol_class"}
    monkeypatch.setattr(uvicorn, "Config", renamed("uvicorn.config", names).Config)
    monkeypatch.setattr(uvicorn, "Server", renamed("uvicorn.server", names).Server)
    monkeypatch.setattr(connections, "_MOST", 3)
    with renamed(server.__name__, {}).running(LocalHub(hub_root)) as url:
        assert httpx.get(f"{url}/api/models/org/name").status_code == 200
        there = [connect(url) for _ in range(2)]
        wait_until(lambda: httpx.get(f"{url}/api/models/org/name").status_code == 503)
        for connection in there:
            connection.close()
        wait_until(lambda: httpx.get(f"{url}/api/models/org/name").status_code == 200)
