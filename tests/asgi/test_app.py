"""Tests of the warm-up's ASGI application, called directly."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio
import httpx
import pytest

from tests.asgi.conftest import MakeLoader, Put, asked
from tests.support.faults import Stall
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until
from yaie_async.asgi import Warmup, events
from yaie_async.asgi.page import PAGE, POLICY

pytestmark = pytest.mark.anyio

Message = MutableMapping[str, Any]


@pytest.fixture
def warmup(loader: MakeLoader, hub: HubServer) -> Warmup:
    """A warm-up of a model whose download never starts."""
    hub.faults.add(Stall(-1), times=None)
    return Warmup(chat=loader())


def scope(path: str, root: str = "", method: str = "GET") -> Message:
    return {"type": "http", "method": method, "path": path, "root_path": root, "headers": []}


async def never() -> Message:
    await anyio.sleep_forever()
    raise AssertionError


async def answers(warmup: Warmup, scope: Message, receive: Callable[[], Awaitable[Message]] = never) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await warmup.app(scope, receive, send)
    return sent


@on_one_loop
@pytest.mark.parametrize(
    ("path", "root", "status"),
    [
        ("/livez", "", 200),
        ("/warmup/livez", "/warmup", 200),
        ("/api/warmup/livez", "/api/warmup", 200),
        ("/livez", "/stripped", 200),  # by a proxy or an old framework
        ("/warmup/", "/warmup", 200),
        ("/warmup", "/warmup", 307),
        ("/wärm\nup", "/wärm\nup", 307),
        ("/", "", 200),
        ("/warmuplivez", "/warmup", 404),
        ("/livez/", "", 200),
        ("/livez//", "", 404),
        ("/readyz/caht", "", 404),
        ("/../livez", "", 404),
    ],
)
async def test_paths_are_below_the_mount(warmup: Warmup, path: str, root: str, status: int) -> None:
    """The paths work below any mount point, and the mount point without a slash redirects to the page."""
    start, _ = await answers(warmup, scope(path, root))
    assert start["status"] == status
    if status == 307:
        assert dict(start["headers"])[b"location"] in (b"/warmup/", b"/w%C3%A4rm%0Aup/")


async def test_litestar_adds_a_slash(loader: MakeLoader, put: Put) -> None:
    """All paths work in a mount of Litestar, which adds a slash to each; the mount point itself redirects to it."""
    from litestar import Litestar
    from litestar import asgi as mount

    put("org/name")
    warmup = Warmup(chat=loader())
    handler = mount("/api/warm up", is_mount=True, copy_scope=True)(_typed(warmup))
    app: Any = Litestar([handler], openapi_config=None, logging_config=None)  # logging is the whole process's
    async with (
        warmup,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app/api/warm up") as client,
    ):
        await warmup["chat"]
        for path in ("/livez", "/readyz", "/readyz/chat", "/status"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/")).content == PAGE
        redirect = await client.get("http://app/api/warm%20up")
        assert (redirect.status_code, redirect.headers["location"]) == (307, "/api/warm%20up/")
        start, _ = await answers(warmup, {**scope("/"), "raw_path": b"//elsewhere.example/warmup\\"})
        assert dict(start["headers"])[b"location"] == b"/elsewhere.example/warmup%5C/"


def _typed(warmup: Warmup) -> Any:
    from litestar.types import Receive, Scope, Send

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await warmup.app(scope, receive, send)  # type: ignore[arg-type]

    app.__annotations__ |= {"scope": Scope, "receive": Receive, "send": Send}
    return app


async def test_only_reading(warmup: Warmup) -> None:
    """POST is refused. HEAD gets the headers of GET without the body, also for the endless /events."""
    start, _ = await answers(warmup, scope("/readyz", method="POST"))
    assert (start["status"], dict(start["headers"])[b"allow"]) == (405, b"GET, HEAD")
    async with warmup:
        for path, code in (("/livez", 200), ("/readyz", 503), ("/status", 200), ("/", 200), ("/events", 200)):
            start, body = await answers(warmup, scope(path, method="HEAD"))
            assert (start["status"], body["body"]) == (code, b"")


async def test_a_websocket_is_refused(warmup: Warmup) -> None:
    """A WebSocket is closed before it is accepted."""

    async def connect() -> Message:
        return {"type": "websocket.connect"}

    assert await answers(warmup, {"type": "websocket", "path": "/events"}, connect) == [{"type": "websocket.close"}]


async def test_it_has_a_lifespan_of_its_own(warmup: Warmup, hub: HubServer) -> None:
    """A server that runs the app alone, or an app that forwards its lifespan, starts the warm-up without a request."""

    async def events_of_a_server() -> Message:
        if not started:
            started.append(True)
            return {"type": "lifespan.startup"}
        await hub.until(lambda: hub.requests)
        return {"type": "lifespan.shutdown"}

    started: list[bool] = []
    told = await answers(warmup, {"type": "lifespan"}, events_of_a_server)
    assert told == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
    hub.clear()


async def test_the_page_needs_nothing_from_outside(warmup: Warmup) -> None:
    """The page's policy allows its own script and style and requests to its own origin, and nothing else."""
    async with asked(warmup) as client:
        answer = await client.get("/")
    assert answer.content == PAGE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy == POLICY
    assert policy.count("sha256-") == 2
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http://www.w3.org/2000/svg" in answer.text
    assert answer.text.count("://") == 1


class Reader:
    """A client of /events that reads only while `open` is set."""

    def __init__(self, warmup: Warmup) -> None:
        self.warmup = warmup
        self.sent: list[Message] = []
        self.open = anyio.Event()
        self.open.set()
        self.left = anyio.Event()
        self.ended = False

    async def run(self) -> None:
        await self.warmup.app(scope("/events"), self._receive, self._send)
        self.ended = True

    async def _receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.open.wait()
        self.sent.append(message)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.text.split("\n") if line.startswith('data: {"')]

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition)


async def test_events_come_at_once_and_on_change(loader: MakeLoader, hub: HubServer, put: Put) -> None:
    """The first event has the current state, the last is ready, none is repeated; a disconnect ends the stream."""
    put("org/name")
    stall = Stall(1000)
    hub.faults.add(stall, path="^/cdn/")
    warmup = Warmup(chat=loader())
    async with warmup, anyio.create_task_group() as group:
        reader = Reader(warmup)
        watch = Stopwatch()
        group.start_soon(reader.run)
        await reader.until(lambda: reader.events)
        assert watch.seconds < events.INTERVAL
        assert dict(reader.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
        assert reader.text.startswith("retry: 1000\n\ndata: ")
        await reader.until(lambda: reader.events[-1]["stage"] == "downloading")
        stall.gate.open()
        await reader.until(lambda: reader.events[-1]["state"] == "ready")
        told = [json.dumps(event) for event in reader.events]
        assert all(one != other for one, other in zip(told, told[1:], strict=False))
        fractions = [event["fraction"] for event in reader.events]
        assert fractions == sorted(fractions)
        reader.left.set()
        await reader.until(lambda: reader.ended)
        assert reader.sent[-1].get("more_body")


async def test_a_quiet_stream_has_a_heartbeat(warmup: Warmup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without changes sends comments, which clients ignore."""
    monkeypatch.setattr(events, "HEARTBEAT", 0.01)
    async with warmup, anyio.create_task_group() as group:
        reader = Reader(warmup)
        group.start_soon(reader.run)
        await reader.until(lambda: reader.text.endswith(":\n\n"))
        reader.left.set()


async def test_a_stream_ends_after_a_while(warmup: Warmup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream ends after its lifetime with an event `again`: a stopping worker would wait for it forever."""
    monkeypatch.setattr(events, "LIFETIME", 0.01)
    async with warmup:
        reader = Reader(warmup)
        watch = Stopwatch()
        await reader.run()
        assert watch.seconds < 5
    assert len(reader.events) == 1
    assert reader.text.endswith("event: again\ndata: {}\n\n")
    assert "more_body" not in reader.sent[-1]


async def test_a_slow_reader_gets_the_newest_state(loader: MakeLoader, hub: HubServer, put: Put) -> None:
    """Events are not queued for a client that does not read: its next event has the newest state."""
    put("org/name")
    stall = Stall(0)
    hub.faults.add(stall, path="^/cdn/")
    warmup = Warmup(chat=loader())
    async with warmup, anyio.create_task_group() as group:
        reader = Reader(warmup)
        group.start_soon(reader.run)
        await reader.until(lambda: reader.events and reader.events[-1]["stage"] == "downloading")
        reader.open = anyio.Event()
        stall.gate.open()
        await warmup["chat"]
        await anyio.sleep(2 * events.INTERVAL)
        count = len(reader.events)
        reader.open.set()
        await reader.until(lambda: reader.events[-1]["state"] == "ready")
        # The event that was being sent when the client stopped reading, and the newest one.
        assert len(reader.events) <= count + 2
        reader.left.set()


async def test_the_end_of_the_server_ends_the_stream(warmup: Warmup) -> None:
    """A stopping server waits for open responses, so the stream ends when the warm-up stops."""
    async with anyio.create_task_group() as group:
        reader = Reader(warmup)
        async with warmup:
            group.start_soon(reader.run)
            await reader.until(lambda: reader.events)
        watch = Stopwatch()
        await reader.until(lambda: reader.ended)
        assert watch.seconds < 1
    assert reader.sent[-1] == {"type": "http.response.body", "body": b""}
