"""What a Hub keeps to: its rate, its number of connections, fairness, and what a server says is too much."""

import time
from pathlib import Path

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.fetch.fetching import SIZE, bodies, fetch, opened, put, sent
from tests.support.faults import Drip, Status
from tests.support.hub import HubServer
from tests.support.stopwatch import Stopwatch
from yaie_async.store.blockmap import BLOCK

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Counting:
    """In front of a hub: how many bodies of the CDN are under way, and how many were at most.

    Each has a pause before every MiB: or all of it would be in the buffers of the kernel at once.
    """

    def __init__(self, hub: HubServer, pause: float) -> None:
        self._pause = pause
        self.now = self.most = 0
        self._app = hub.app
        hub.app = self  # type: ignore[assignment]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith("/cdn/"):
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.now += 1
                self.most = max(self.most, self.now)
            else:
                await anyio.sleep(self._pause)
            # Before the last byte goes out: the client may ask for the next range as soon as it has it.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.now -= 1
            await send(message)

        await self._app(scope, receive, counted)


@pytest.mark.parametrize("connections", [1, 2, 5])
async def test_connections_are_never_exceeded(connections: int, hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """Over all files and models of a Hub; and they are used."""
    for name in ("org/big", "org/two"):
        put(hub_root, SIZE, name)
    counting = Counting(hub, 0.03)
    async with opened(hub, tmp_path, max_connections=connections) as one:
        await one.prefetch("org/big", "org/two")
    assert counting.most == connections


@pytest.mark.parametrize(("rate", "connections"), [(8e6, 4)])
async def test_the_rate_is_kept_within_a_twentieth(
    rate: float, connections: int, hub_root: Path, hub: HubServer, tmp_path: Path
) -> None:
    """Over three seconds all bodies together come at `max_bytes_per_second`: not faster, and hardly slower."""
    size = int(rate * 3)
    put(hub_root, size)
    async with opened(hub, tmp_path, max_bytes_per_second=rate, max_connections=connections) as one:
        async with anyio.create_task_group() as group:
            group.start_soon(one.prefetch, "org/big")
            await hub.until(lambda: sent(hub))
            first, watch = time.monotonic(), Stopwatch()
        took, alone = time.monotonic() - first, watch.seconds
    print(f"{size / took / rate:.3f} of the rate")
    assert took >= 0.95 * size / rate  # never faster
    assert alone <= 1.3 * size / rate


async def test_two_equal_models_progress_together(hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """Neither waits for the other to finish: the ranges that were asked for alternate."""
    for name in ("org/big", "org/two"):
        put(hub_root, 7 * BLOCK, name)
    async with opened(hub, tmp_path, max_connections=2, max_bytes_per_second=40e6) as one:
        await one.prefetch("org/big", "org/two")
    asked = {"org/big": 0, "org/two": 0}
    for request in bodies(hub):
        (name,) = [name for name in asked if name in request.path.replace("%2F", "/")]
        asked[name] += 1
        # The second model's listing may come a moment later than the first one's.
        assert abs(asked["org/big"] - asked["org/two"]) <= 3, hub.lines
    assert min(asked.values()) >= 3


async def test_fewer_ranges_run_after_a_503(hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """A server that says that it is too much gets half as many at once."""
    content = put(hub_root, 24 * BLOCK)
    counting = Counting(hub, 0.1)
    async with opened(hub, tmp_path, max_connections=8) as one:
        async with anyio.create_task_group() as group:
            group.start_soon(one.prefetch, "org/big")
            await hub.until(lambda: counting.most >= 6)
            rule = hub.faults.add(Status(503, {"Retry-After": "0"}), path="^/cdn/")
            await hub.until(lambda: rule.hits)
            scheduler = one.session.downloader._scheduler
            await hub.until(lambda: scheduler.width == 4)
            # Not those that the hub counts: a range may still be on its way to it, or wait to ask again.
            await hub.until(lambda: len(scheduler._running) <= 4)
            counting.most = counting.now
            await anyio.sleep(0.5)
            assert counting.most <= 5  # one more than before 5 s is growth
        snapshot = next((tmp_path / "models--org--big/snapshots").iterdir())
    assert (snapshot / "model.safetensors").read_bytes() == content


async def test_a_slow_link_alone_is_not_dropped(hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """All ranges are slow alike: none of them is given up, and no byte is asked for twice."""
    content = put(hub_root, SIZE)
    hub.faults.add(Drip(4e6), path="^/cdn/", times=None)
    assert await fetch(hub, tmp_path) == content
    assert sum(request.sent for request in bodies(hub)) == len(content)


async def test_the_limit_does_not_hold_up_a_cancel(hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """Threads that wait for their share of the rate are woken."""
    put(hub_root, SIZE)
    async with opened(hub, tmp_path, max_bytes_per_second=20_000) as one:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(one.prefetch, "org/big")
                await hub.until(lambda: bodies(hub))
                await anyio.sleep(0.2)
                watch = Stopwatch()
                scope.cancel()
    assert watch.seconds < 1
