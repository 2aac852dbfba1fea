"""When a failed request is tried again: decisions on data, and a clock that is written down instead of waited for."""

import random
import time
from email.utils import formatdate
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.stopwatch import Stopwatch
from yaie_async.core.errors import HubUnavailableError
from yaie_async.core.stall import Stall, StallWatch, current_watch
from yaie_async.fetch.failures import Asked, TransientError, asked_wait
from yaie_async.fetch.retry import RetryPolicy, retried

ASKED = Asked("org/model", "main", None, has_token=False)
POLICY = RetryPolicy(attempts=4, first_wait=1.0, longest_wait=3.0, budget=100.0)


def failing(wait: float | None = None, text: str = "no") -> TransientError:
    return TransientError(text, kind="status", status=503, wait=wait)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time; jitter is at its most."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(anyio, "sleep", sleep)
    monkeypatch.setattr(random, "random", lambda: 1.0)
    return waits


# -- the policy ---------------------------------------------------------------------------------------------


def test_the_policy_is_frozen() -> None:
    """One object says how often and how long, and nobody changes it."""
    with pytest.raises(AttributeError):
        POLICY.attempts = 9  # type: ignore[misc]


@given(st.integers(1, 40), st.none() | st.floats(0, 1e6), st.floats(0, 1))
def test_a_wait_is_bounded_and_at_least_what_was_asked(failures: int, asked: float | None, jitter: float) -> None:
    """Waits double up to the longest, jitter takes off half at most, and a server may ask for more."""
    wait = POLICY.wait_before(failures, asked, jitter)
    full = min(POLICY.longest_wait, POLICY.first_wait * 2 ** (failures - 1))
    assert wait >= max(full / 2, asked or 0)
    assert wait <= max(full, asked or 0)


def test_it_gives_up_by_count_or_by_time() -> None:
    """As many failures in a row as attempts, or more waiting than the budget, is enough."""
    assert [POLICY.gives_up(n, 0, 1) for n in (1, 3, 4)] == [False, False, True]
    assert [POLICY.gives_up(1, 90, wait) for wait in (10, 10.1)] == [False, True]


# -- around work --------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_it_waits_before_each_new_attempt(anyio_backend: Any, slept: list[float]) -> None:
    """The first retry waits too, each wait is the policy's for its failure, and the result comes back."""
    outcomes: list[TransientError | str] = [failing(), failing(), failing(), "done"]

    async def work() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, TransientError):
            raise outcome
        return outcome

    assert await retried(POLICY, work, ASKED) == "done"
    assert slept == [1.0, 2.0, 3.0]


@pytest.mark.anyio
async def test_what_a_server_asks_is_waited_before_the_next_attempt(anyio_backend: Any, slept: list[float]) -> None:
    """A Retry-After holds for the attempt that follows it, and for no other."""
    outcomes: list[TransientError | None] = [failing(), failing(wait=7.0), failing(), None]

    async def work() -> None:
        if outcome := outcomes.pop(0):
            raise outcome

    await retried(POLICY, work, ASKED)
    assert slept == [1.0, 7.0, 3.0]


@pytest.mark.anyio
async def test_it_gives_up_with_the_last_failure(anyio_backend: Any, slept: list[float]) -> None:
    """The error counts the attempts, has the last failure and chains its cause."""
    count = 0

    async def work() -> None:
        nonlocal count
        count += 1
        try:
            raise OSError(count)
        except OSError as error:
            raise failing(text=str(count)) from error

    with pytest.raises(HubUnavailableError, match="after 4 attempts: 4") as caught:
        await retried(POLICY, work, ASKED)
    assert (count, caught.value.attempts) == (4, 4)
    assert repr(caught.value.__cause__) == "OSError(4)"
    assert len(slept) == 3


@pytest.mark.anyio
async def test_a_few_bytes_are_no_progress(anyio_backend: Any, slept: list[float]) -> None:
    """An attempt that brings less than `least` is one more in a row."""
    done = 0

    async def work() -> None:
        nonlocal done
        done += 9
        raise failing()

    with pytest.raises(HubUnavailableError) as caught:
        await retried(RetryPolicy(attempts=3, first_wait=1.0), work, ASKED, progress=lambda: done, least=10)
    assert caught.value.attempts == 3


@pytest.mark.anyio
async def test_progress_starts_the_count_over_but_not_the_budget(anyio_backend: Any, slept: list[float]) -> None:
    """Failures with new bytes in between are not in a row; all waiting together stays within the budget."""
    done = 0

    async def work() -> None:
        nonlocal done
        done += 1
        raise failing()

    with pytest.raises(HubUnavailableError) as caught:
        await retried(RetryPolicy(attempts=2, first_wait=1.0, budget=10.0), work, ASKED, progress=lambda: done)
    assert slept == [1.0] * 10
    assert caught.value.attempts == 11


@pytest.mark.anyio
async def test_a_wait_beyond_the_budget_is_not_begun(anyio_backend: Any, slept: list[float]) -> None:
    """Who is asked to wait an hour gives up at once."""

    async def work() -> None:
        raise failing(wait=3600.0)

    with pytest.raises(HubUnavailableError) as caught:
        await retried(POLICY, work, ASKED)
    assert (slept, caught.value.attempts) == ([], 1)


@pytest.mark.anyio
async def test_the_watch_of_the_load_is_told_why_a_request_failed(anyio_backend: Any, slept: list[float]) -> None:
    """The reason is one short line without the model's name, without secrets and without what a terminal obeys."""
    watch = StallWatch(lambda: 100.0)
    current_watch.set(watch)
    seen: list[Stall | None] = []

    async def work() -> None:
        seen.append(watch.look(104.0))
        if len(seen) < 3:
            raise ASKED.transient(f"HTTP 503 (Bearer hf_0123456789abcdef\n\x1b[31m{'x' * 900})", "status")

    await retried(POLICY, work, ASKED)
    silent, first, second = seen
    assert silent == Stall("no byte for 4 s", 1, None)
    assert first is not None and second is not None
    assert first.reason.startswith("HTTP 503 (Bearer ***  [31mxxx")
    assert first.reason.isprintable() and len(first.reason) == 200
    assert (first.attempt, second.attempt) == (2, 3)
    assert watch.look(200.0) is None


@pytest.mark.anyio
async def test_other_errors_are_not_tried_again(anyio_backend: Any, slept: list[float]) -> None:
    """Disk full, 404, a cancel: whatever is not transient comes out at once, as it is."""
    count = 0

    async def work() -> None:
        nonlocal count
        count += 1
        raise KeyError("x")

    with pytest.raises(KeyError):
        await retried(POLICY, work, ASKED)
    assert (count, slept) == (1, [])


@pytest.mark.anyio
async def test_a_cancel_ends_a_wait(anyio_backend: Any) -> None:
    """Cancelled in a long wait, control returns at once."""

    async def work() -> None:
        raise failing(wait=50.0)

    watch = Stopwatch()
    with anyio.move_on_after(0.03) as scope:
        await retried(POLICY, work, ASKED)
    assert scope.cancelled_caught
    assert watch.seconds < 5


# -- what servers ask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "9" * 400}, 1e9),
        ({"ratelimit": '"api";r=0;t=' + "9" * 400}, 1e9),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.0),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 -0000"}, 0.0),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=0;t=55', "retry-after": "1"}, 55.0),
        ({"ratelimit": '"api";r=10;t=55'}, None),
        ({"ratelimit": '"api";r=10;t=55', "retry-after": "3"}, 3.0),
        ({"ratelimit": "nonsense"}, None),
    ],
)
def test_the_wait_that_is_asked_for(headers: dict[str, str], seconds: float | None) -> None:
    """RateLimit with nothing remaining, else Retry-After as a number or a date; anything else asks for nothing."""
    assert asked_wait(headers) == seconds


def test_a_date_is_waited_for() -> None:
    """Retry-After as a date in the future is the time until then."""
    wait = asked_wait({"retry-after": formatdate(time.time() + 100, usegmt=True)})
    assert wait is not None
    assert 98 <= wait <= 101


@given(st.text(max_size=40))
def test_no_header_is_too_strange(value: str) -> None:
    """Whatever a header says, it is a number of seconds from zero, or nothing."""
    for name in ("retry-after", "ratelimit"):
        wait = asked_wait({name: value})
        assert wait is None or wait >= 0
