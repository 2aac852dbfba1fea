"""The meter of a load, and its events."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until
from yaie_async.core.progress import RATE_WINDOW, Meter, Progress, reporting
from yaie_async.core.stall import StallWatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    meter = Meter("org/name", clock)
    meter.expect(total=1000, files=3)
    meter.stage("downloading")
    return meter


# -- the meter ----------------------------------------------------------------------------------------------


def test_a_new_meter_knows_nothing() -> None:
    """Before the listing is known there are no totals, no rate and no time left."""
    assert Meter("org/name").snapshot() == Progress("org/name", "resolving")
    assert Meter("org/name").snapshot().fraction == 0.0


def test_bytes_make_a_rate_and_a_time_left(meter: Meter, clock: Clock) -> None:
    """The rate is the average of the last seconds, and the time left follows from it."""
    meter.add(100)
    clock.now += 1
    meter.add(100)
    event = meter.snapshot()
    assert (event.bytes_done, event.bytes_total) == (200, 1000)
    assert event.bytes_per_second == 200
    assert event.seconds_left == 4
    assert event.fraction == 0.2


def test_the_rate_covers_the_last_five_seconds(meter: Meter, clock: Clock) -> None:
    """After a pause of more than five seconds the rate is zero and the time left is unknown."""
    meter.add(500)
    clock.now += RATE_WINDOW + 0.1
    event = meter.snapshot()
    assert (event.bytes_per_second, event.seconds_left) == (0.0, None)
    assert event.bytes_done == 500


def test_cached_files_are_progress_without_a_rate(meter: Meter) -> None:
    """Cached bytes count as done and do not affect the rate."""
    meter.cached(400)
    event = meter.snapshot()
    assert (event.bytes_done, event.files_done, event.bytes_per_second) == (400, 1, 0.0)


def test_bytes_that_are_taken_back_do_not_count(meter: Meter, clock: Clock) -> None:
    """A file that is fetched again counts once: its bytes are taken back first, and the total stays."""
    meter.add(300)
    clock.now += 1
    meter.add(-300)
    assert meter.snapshot().bytes_done == 0
    assert meter.snapshot().bytes_per_second == 0.0
    meter.add(300)
    assert meter.snapshot().bytes_done == 300
    assert meter.snapshot().bytes_total == 1000


def test_there_is_no_rate_outside_the_download(meter: Meter, clock: Clock) -> None:
    """While a model is built there is no rate and no time left; once ready, the fraction is 1."""
    meter.add(500)
    clock.now += 1
    meter.stage("building")
    assert meter.snapshot().bytes_per_second == 0.0
    assert meter.snapshot().seconds_left is None
    meter.stage("ready")
    assert meter.snapshot().fraction == 1.0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(-50, 400)), max_size=40))
def test_an_event_is_never_out_of_bounds(steps: list[tuple[float, int]]) -> None:
    """Whatever is added or taken back, an event never has more bytes than the total, nor a negative rate."""
    clock = Clock()
    meter = Meter("m", clock)
    meter.expect(total=1000, files=1)
    meter.stage("downloading")
    done = 0
    for wait, size in steps:
        clock.now += wait
        size = max(size, -done)
        done += size
        (meter.add if size >= 0 else meter.held)(size)
        event = meter.snapshot()
        assert 0 <= event.bytes_done == min(done, 1000)
        assert 0 <= event.fraction <= 1
        assert event.bytes_per_second >= 0
        assert event.seconds_left is None or event.seconds_left >= 0


def test_threads_may_add_while_snapshots_are_taken() -> None:
    """Bytes that several threads add at once are all counted while snapshots are taken."""
    meter = Meter("m")
    meter.expect(total=10**9, files=1)
    meter.stage("downloading")

    def add() -> None:
        for _ in range(5000):
            meter.add(1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        meter.snapshot()
    assert meter.snapshot().bytes_done == 20000


def test_a_load_has_stalled_after_three_seconds_without_a_byte(meter: Meter, clock: Clock) -> None:
    """An outage has a stage of its own, with its reason and the time of the next attempt, until bytes move."""
    meter.add(100)
    with meter.stall.wanting():
        clock.now += 2.9
        assert meter.snapshot().stage == "downloading"
        clock.now += 1.2
        silent = meter.snapshot()
        assert (silent.stage, silent.reason, silent.attempt, silent.retry_in) == ("stalled", "no byte for 4 s", 1, None)
        assert (silent.bytes_per_second, silent.seconds_left, silent.bytes_done) == (0.0, None, 100)
        meter.stall.failed("HTTP 500", 2, 60.0)
        meter.stall.failed("HTTP 503", 3, 5.0)
        clock.now += 1
        failed = meter.snapshot()
        assert (failed.stage, failed.reason, failed.attempt, failed.retry_in) == ("stalled", "HTTP 503", 3, 4.0)
        clock.now += 4
        assert (meter.snapshot().reason, meter.snapshot().attempt, meter.snapshot().retry_in) == ("HTTP 503", 3, None)
        meter.add(1)
        moves = meter.snapshot()
        assert (moves.stage, moves.reason, moves.attempt, moves.retry_in) == ("downloading", "", 0, None)
    assert [name for name, _ in moves.steps] == ["resolving", "downloading", "stalled"]


def test_an_answer_ends_a_stall(clock: Clock) -> None:
    """A request for metadata is wanted as bytes are, and its answer is as good."""
    meter = Meter("m", clock)
    with meter.stall.wanting():
        clock.now += 3
        assert meter.snapshot().stage == "stalled"
    assert meter.snapshot().stage == "resolving"
    clock.now += 60
    with meter.stall.wanting():
        assert meter.snapshot().stage == "resolving"


def test_a_load_that_waits_for_its_turn_stalls_with_the_others(clock: Clock) -> None:
    """Without a request of its own it stalls by what those of the Hub's other loads report, and not while they move."""
    shared = StallWatch(clock)
    first, second = Meter("a", clock), Meter("b", clock)
    with first.stall.behind(shared), second.stall.behind(shared):
        clock.now += 60
        assert second.snapshot().stage == "resolving"  # nobody asks
        with first.stall.wanting():
            clock.now += 2
            first.add(1, held=10)
            clock.now += 12
            assert second.snapshot().stage == "resolving"
            clock.now += 2
            first.stall.failed("HTTP 503", 3, 5.0)
            with second.stall.wanting():
                assert second.snapshot().stage == "resolving"
            second.stall.failed("HTTP 500", 2, 4.0)
            clock.now += 3
            told = second.snapshot()
            assert (told.stage, told.reason, told.attempt, told.retry_in) == ("stalled", "HTTP 500", 2, 1.0)
            first.add(1)
            assert second.snapshot().stage == "resolving"
    clock.now += 60
    assert second.snapshot().stage == "resolving"


def test_a_load_that_wants_no_bytes_has_not_stalled(meter: Meter, clock: Clock) -> None:
    """Nothing stalls without a request, for another process, behind digests, or by the user's own rate limit."""
    clock.now += 60
    assert meter.snapshot().stage == "downloading"
    with meter.stall.wanting():
        meter.add(10, held=60)
        meter.add(10)
        clock.now += 62
        assert meter.snapshot().stage == "downloading"
        clock.now += 2
        assert meter.snapshot().stage == "stalled"
        with meter.blob_stage("waiting"):
            assert meter.snapshot().stage == "waiting"
        meter.held(980)
        assert meter.snapshot().stage == "verifying"
        meter.stage("building")
        assert meter.snapshot().stage == "building"


def test_steps_add_up_to_the_time_of_the_load(clock: Clock) -> None:
    """Each stage that people see has its seconds, in order of first entry, and none passes once the model is ready."""
    meter = Meter("m", clock)
    clock.now += 1
    meter.stage("downloading")
    meter.expect(total=10, files=1)
    with meter.blob_stage("downloading"):
        clock.now += 2
        meter.add(10)
        assert meter.snapshot().steps == (("resolving", 1.0), ("downloading", 2.0))
        clock.now += 4  # digests are computed behind the last byte
    meter.stage("building")
    clock.now += 8
    meter.stage("ready")
    clock.now += 16
    event = meter.snapshot()
    assert event.steps == (("resolving", 1.0), ("downloading", 2.0), ("verifying", 4.0), ("building", 8.0))


def test_events_that_differ_in_their_steps_alone_are_equal(clock: Clock) -> None:
    """The time that passes within a stage is no change by which an event is sent."""
    meter = Meter("m", clock)
    before = meter.snapshot()
    clock.now += 1
    assert meter.snapshot() == before
    assert meter.snapshot().steps != before.steps


def test_events_are_frozen() -> None:
    """A callback can't change an event."""
    with pytest.raises(AttributeError):
        Progress("m", "ready").stage = "building"  # type: ignore[misc]


# -- reporting ----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_first_and_the_last_event_always_come(anyio_backend: Any) -> None:
    """Even a short block gives an event at its start and one with its last stage."""
    events: list[Progress] = []
    meter = Meter("m")
    async with reporting(meter, events.append):
        meter.stage("ready")
    assert [event.stage for event in events] == ["resolving", "ready"]


@pytest.mark.anyio
async def test_events_are_at_most_ten_a_second_and_on_the_loops_thread(anyio_backend: Any) -> None:
    """Thousands of steps make a handful of events, each different from the one before, all on the loop's thread."""
    events: list[tuple[float, int, Progress]] = []
    meter = Meter("m")
    meter.expect(total=10**6, files=1)

    def keep(event: Progress) -> None:
        events.append((anyio.current_time(), threading.get_ident(), event))

    async with reporting(meter, keep):
        start, watch = anyio.current_time(), Stopwatch()
        while anyio.current_time() < start + 0.35 or len(events) < 4:
            meter.add(1)
            await anyio.lowlevel.checkpoint()
        assert watch.seconds < 0.45
    took = events[-1][0] - start
    assert 4 <= len(events) <= took / 0.1 + 2
    assert {ident for _, ident, _ in events} == {threading.get_ident()}
    sent = [event for _, _, event in events]
    assert all(one != other for one, other in zip(sent, sent[1:], strict=False))


@pytest.mark.anyio
async def test_no_event_is_sent_without_a_change(anyio_backend: Any) -> None:
    """While nothing changes, no events are sent."""
    events: list[Progress] = []
    looks = 0

    class Counted(Meter):
        def snapshot(self) -> Progress:
            nonlocal looks
            looks += 1
            return super().snapshot()

    async with reporting(Counted("m"), events.append):
        await until(lambda: looks > 3)
    assert len(events) == 1


@pytest.mark.anyio
async def test_a_callback_that_fails_is_logged_once(anyio_backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in the callback is logged once, with its traceback, and the block goes on."""
    calls: list[Progress] = []

    def broken(event: Progress) -> None:
        calls.append(event)
        raise ZeroDivisionError

    meter = Meter("org/name")
    with caplog.at_level(logging.ERROR, "yaie_async"):
        async with reporting(meter, broken):
            meter.stage("downloading")
        meter.stage("ready")
    (record,) = caplog.records
    assert record.name == "yaie_async"
    assert "org/name" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert len(calls) == 1


@pytest.mark.anyio
async def test_an_error_of_the_block_comes_out_bare(anyio_backend: Any) -> None:
    """An error inside the block is raised itself, not in a group, after the last event."""
    events: list[Progress] = []
    meter = Meter("m")
    with pytest.raises(KeyError):
        async with reporting(meter, events.append):
            meter.stage("downloading")
            raise KeyError
    assert events[-1].stage == "downloading"


@pytest.mark.anyio
async def test_a_load_that_fails_in_an_outage_has_stalled_to_the_end(anyio_backend: Any, clock: Clock) -> None:
    """The last event of a load that gives up is the outage, not the download that it ended."""
    events: list[Progress] = []
    meter = Meter("m", clock)
    with pytest.raises(KeyError):
        async with reporting(meter, events.append):
            with meter.stall.wanting():
                clock.now += 4
                await until(lambda: events[-1].stage == "stalled")
                raise KeyError
    assert events[-1].reason == "no byte for 4 s"
    clock.now += 60
    assert sum(seconds for _, seconds in meter.snapshot().steps) == 4


@pytest.mark.anyio
async def test_a_load_that_is_cancelled_in_an_outage_has_stalled_to_the_end(anyio_backend: Any, clock: Clock) -> None:
    """The last event of a load that is cancelled meanwhile is the outage too."""
    events: list[Progress] = []
    meter = Meter("m", clock)
    with anyio.CancelScope() as scope:
        async with reporting(meter, events.append):
            with meter.stall.wanting():
                clock.now += 4
                await until(lambda: events[-1].stage == "stalled")
                scope.cancel()
                await anyio.sleep_forever()
    assert [event.stage for event in events] == ["resolving", "stalled"]


@pytest.mark.anyio
async def test_a_cancelled_block_sends_its_last_stage(anyio_backend: Any) -> None:
    """After a cancel the last event is still sent."""
    events: list[Progress] = []
    meter = Meter("m")
    with anyio.CancelScope() as scope:
        async with reporting(meter, events.append):
            meter.stage("downloading")
            scope.cancel()
            await anyio.sleep_forever()
    assert [event.stage for event in events] == ["resolving", "downloading"]


def test_a_download_is_verifying_once_all_bytes_are_on_disk() -> None:
    """Once every byte is on disk, only digests are left: the stage is "verifying", without a time left."""
    clock = Clock()
    meter = Meter("m", clock)
    meter.stage("downloading")
    assert meter.snapshot().stage == "downloading"
    meter.expect(total=1000, files=2)
    meter.add(999)
    clock.now += 1
    assert meter.snapshot().stage == "downloading"
    meter.add(1)
    event = meter.snapshot()
    assert (event.stage, event.bytes_done, event.seconds_left) == ("verifying", 1000, None)
    meter.held(-1000)  # the digest was wrong: all bytes are fetched again
    assert meter.snapshot().stage == "downloading"
    meter.add(1000)
    meter.stage("ready")
    assert meter.snapshot().stage == "ready"


def test_a_load_is_waiting_only_while_no_blob_of_its_own_is_busy() -> None:
    """With one blob downloading, the load is downloading; with only other processes' blobs it is waiting, at no rate."""
    clock = Clock()
    meter = Meter("m", clock)
    meter.stage("downloading")
    meter.expect(total=1000, files=2)
    with meter.blob_stage("waiting"):
        with meter.blob_stage("downloading"):
            meter.add(400)
            assert meter.snapshot().stage == "downloading"
        clock.now += 1
        event = meter.snapshot()
        assert (event.stage, event.bytes_per_second, event.seconds_left) == ("waiting", 0.0, None)
        with meter.blob_stage("verifying"):  # the other process is done, and its blob is verified
            assert meter.snapshot().stage == "verifying"
            with meter.blob_stage("downloading"):
                assert meter.snapshot().stage == "downloading"
        assert meter.snapshot().stage == "waiting"
        meter.stage("building")
        assert meter.snapshot().stage == "building"
        meter.stage("downloading")
    assert meter.snapshot().stage == "downloading"
