"""Tests of the progress events of loads with retries, failures and bad callbacks."""

import threading
from pathlib import Path

import anyio
import pytest

from tests.loader.conftest import Put
from tests.support.faults import Corrupt, Cut, IgnoreRange, Stall, Status
from tests.support.hub import HubServer
from tests.support.waiting import until
from yaie_async import HubUnavailableError, ModelLoader, Progress
from yaie_async.core.progress import INTERVAL

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
