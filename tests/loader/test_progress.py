"""Tests of the progress events of loads with retries, failures and bad callbacks."""

import gc
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.loader.conftest import Put
from tests.support.faults import Corrupt, Cut, Drip, IgnoreRange, Stall, Status
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from tests.support.waiting import until
from yaie_async import Hub, HubUnavailableError, InvalidArgumentError, ModelLoader, Progress
from yaie_async.core import stall
from yaie_async.core.progress import INTERVAL, Meter
from yaie_async.fetch import retry
from yaie_async.fetch.retry import RetryPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]


@pytest.mark.parametrize(
    "fault", [Cut(1 << 20), Corrupt(5), IgnoreRange(), Status(503)], ids=lambda f: type(f).__name__
)
async def test_totals_stand_and_bytes_count_once(fault: object, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Retries never change the total, done bytes never exceed it, and the last event is complete."""
    put_fake("org/big", 20 << 20)
    hub.faults.add(fault, path="^/cdn/", times=2)  # type: ignore[arg-type]
    events: list[tuple[float, int, Progress]] = []

    def note(event: Progress) -> None:
        events.append((anyio.current_time(), threading.get_ident(), event))

    await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=note).prefetch()
    told = [event for _, _, event in events]
    totals = {event.bytes_total for event in told} - {0}
    assert len(totals) == 1
    assert all(0 <= event.bytes_done <= event.bytes_total or event.bytes_total == 0 for event in told)
    assert told[0].stage == "resolving"
    last = told[-1]
    assert (last.stage, last.bytes_done, last.fraction) == ("ready", totals.pop(), 1.0)
    assert last.files_done == last.files_total == 4
    assert {ident for _, ident, _ in events} == {threading.get_ident()}
    times = [when for when, _, _ in events]
    # Only the first and the last event may follow another at once.
    assert all(later - earlier > INTERVAL * 0.9 for earlier, later in zip(times[1:-2], times[2:-1], strict=True))


async def test_a_cached_load_tells_first_and_last(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A load from the cache has a first and a last event."""
    put_fake("org/big")
    await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path).prefetch()
    events: list[Progress] = []
    await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=events.append).prefetch()
    assert [events[0].stage, events[-1].stage] == ["resolving", "ready"]


async def test_a_failed_load_tells_where_it_ended(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """The last event of a failed load has the stage in which it failed."""
    put_fake("org/big")
    hub.faults.add(Status(500), path="^/cdn/", times=None)
    events: list[Progress] = []
    with pytest.raises(HubUnavailableError):
        await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=events.append).prefetch()
    assert events[-1].stage == "downloading"


@pytest.mark.parametrize(
    ("make", "path", "before", "reason", "attempt"),
    [
        (lambda: Status(503), "^/cdn/", "downloading", "HTTP 503 from 127.0.0.", 2),
        (lambda: Status(502), "^/api/", "resolving", "HTTP 502 from 127.0.0.1", 2),
        (lambda: Stall(-1), "^/api/", "resolving", "no byte for ", 1),
    ],
)
async def test_an_outage_shows_until_it_ends(
    make: Callable[[], Status | Stall],
    path: str,
    before: str,
    reason: str,
    attempt: int,
    hub: HubServer,
    put_fake: Put,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While nothing comes the stage is "stalled", with the reason and the attempt; the load then goes on."""
    monkeypatch.setattr(stall, "STALL_SECONDS", 0.2)
    patient = RetryPolicy(attempts=10_000, first_wait=0.02, longest_wait=0.02)
    monkeypatch.setattr(retry, "RetryPolicy", lambda: patient)
    put_fake("org/big")
    fault = make()
    hub.faults.add(fault, path=path, times=None)
    events: list[Progress] = []

    def note(event: Progress) -> None:
        events.append(event)
        if event.stage == "stalled":
            hub.faults.clear()
            if isinstance(fault, Stall):
                fault.gate.open()

    await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=note).prefetch()
    stages = [event.stage for event in events]
    first = events[stages.index("stalled")]
    assert stages[stages.index("stalled") - 1] == before
    assert first.reason.startswith(reason)
    assert first.attempt >= attempt
    assert stages[-1] == "ready"


@pytest.mark.parametrize("names", [("org/a", "org/b"), ("org/a", "org/a")], ids=["turn", "same"])
async def test_an_outage_shows_in_every_load_that_waits(
    names: tuple[str, str], hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load whose files wait for the requests of another load has stalled as that has."""
    monkeypatch.setattr(stall, "STALL_SECONDS", 0.2)
    for name in set(names):
        put_fake(name)
    fault = Stall(1000)
    silent = hub.faults.add(fault, path="^/cdn/", times=None)
    async with Hub(endpoint=hub.url, cache_dir=tmp_path, max_connections=1) as one, anyio.create_task_group() as group:
        first, second = (ModelLoader(name, hub=one) for name in names)
        group.start_soon(first.prefetch)
        await until(lambda: silent.hits)
        group.start_soon(second.prefetch)
        await until(lambda: second.progress is not None and second.progress.bytes_total and _stalled(second))
        hub.faults.clear()
        fault.gate.open()


def _stalled(loader: ModelLoader) -> bool:
    return loader.progress is not None and loader.progress.stage == "stalled"


async def test_a_rate_limit_is_no_outage(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Bytes that the user's own limit holds back are not missed."""
    put_fake("org/big")
    async with (
        Hub(endpoint=hub.url, cache_dir=tmp_path, max_bytes_per_second=1) as one,
        anyio.create_task_group() as group,
    ):
        loader = ModelLoader("org/big", hub=one)
        group.start_soon(loader.prefetch)
        await until(lambda: loader.progress is not None and loader.progress.bytes_per_second)
        assert loader._meter is not None
        in_a_while = time.monotonic() + stall.STALL_SECONDS + 1
        watch = loader._meter.stall
        await until(lambda: watch.look(in_a_while) is None and watch.look(math.inf) is not None)
        group.cancel_scope.cancel()


async def test_a_callback_that_fails_does_not_stop_the_load(
    hub: HubServer, put_fake: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception of a callback is logged once, and the load continues."""
    put_fake("org/big")

    def fail(_event: Progress) -> None:
        raise ValueError("mine")

    loader = ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=fail)
    assert (await loader.prefetch()).exists()
    assert caplog.text.count("ValueError: mine") == 1


@on_one_loop
async def test_a_callback_that_blocks_for_a_second(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """It delays the events, and nothing fails for that."""
    put_fake("org/big")
    hub.faults.add(Drip(40 << 20), path="^/cdn/")
    stages: list[str] = []

    def block(event: Progress) -> None:
        if event.bytes_done and "downloading" not in stages:
            end = time.monotonic() + 1
            while time.monotonic() < end:  # `time.sleep` is what no_blocking watches for
                pass
        stages.append(event.stage)

    await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=block).prefetch()
    assert stages[-1] == "ready"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_may_end_the_process(
    error: type[BaseException], hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """SystemExit and KeyboardInterrupt are no failures of a callback: the load raises them."""
    put_fake("org/big")
    hub.faults.add(Stall(1 << 20), path="^/cdn/")

    def leave(event: Progress) -> None:
        if event.bytes_done:
            raise error

    loader = ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=leave)
    with pytest.raises(error):
        anyio.run(loader.prefetch)


async def async_function(_event: Progress) -> None: ...


class AsyncCallable:
    async def __call__(self, _event: Progress) -> None: ...


@pytest.mark.parametrize(
    "callback",
    [async_function, AsyncCallable(), partial(async_function), "print"],
    ids=["def", "call", "partial", "no"],
)
@pytest.mark.parametrize("make", [Hub, partial(ModelLoader, "org/big")], ids=["Hub", "ModelLoader"])
def test_a_callback_that_can_t_be_called(callback: Any, make: Callable[..., object]) -> None:
    """A coroutine function is refused when it is passed: its coroutines would never run."""
    with pytest.raises(InvalidArgumentError, match="on_progress must be"):
        make(on_progress=callback)


async def test_a_callback_that_returns_a_coroutine(
    hub: HubServer, put_fake: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not known before the first call is logged then, and no coroutine is left that was never awaited."""
    put_fake("org/big", 1000)
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path}

    def hidden(event: Progress) -> object:
        return async_function(event)

    await ModelLoader("org/big", on_progress=hidden, **options).prefetch()
    gc.collect()
    assert caplog.text.count("\nTypeError: it returned a coroutine") == 1


async def test_progress_can_be_looked_at(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """`progress` is None before the first load, then has the current state, as the events do."""
    put_fake("org/big")
    stall = Stall(1 << 20)
    hub.faults.add(stall, path="^/cdn/")
    events: list[Progress] = []
    loader = ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=events.append)
    assert loader.progress is None
    async with anyio.create_task_group() as group:
        group.start_soon(loader.prefetch)
        await until(lambda: loader.progress is not None and loader.progress.bytes_done >= 1 << 20)
        assert loader.progress is not None
        assert loader.progress.stage == "downloading"
        assert loader.progress.bytes_done < loader.progress.bytes_total
        stall.gate.open()
    assert loader.progress == events[-1]
    assert loader.progress.fraction == 1.0


async def test_an_outage_shows_while_the_tokenizer_asks(
    hub: HubServer, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a load of both, the model waits for requests of the tokenizer: it has stalled when they have."""
    monkeypatch.setattr(stall, "STALL_SECONDS", 0.1)
    put("org/m")
    fault = Stall(-1)
    hub.faults.add(fault, path="^/api/", times=None)
    loader = ModelLoader("org/m", endpoint=hub.url, cache_dir=tmp_path)
    loader._meter = Meter("org/m")  # as the load of the model makes one
    async with anyio.create_task_group() as group:
        group.start_soon(partial(loader._load_tokenizer, quiet=True))
        await until(lambda: loader.progress is not None and loader.progress.stage == "stalled")
        fault.gate.open()
