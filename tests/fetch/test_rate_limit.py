"""The token bucket, driven by a simulated clock."""

import heapq
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yaie_async.fetch.rate_limit import TokenBucket

SECONDS = 10.0


def _moved(bucket: TokenBucket, readers: list[list[int]], oversleep: float) -> int:
    """Bytes that readers get through in ten seconds when only the bucket holds them up."""
    largest = bucket.largest_read(len(readers))
    turns = [(0.0, number, 0) for number in range(len(readers))]
    moved = 0
    while turns[0][0] < SECONDS:
        now, number, step = heapq.heappop(turns)
        nbytes = min(readers[number][step % len(readers[number])], largest)
        moved += nbytes
        heapq.heappush(turns, (now + bucket.take(nbytes, now) + oversleep, number, step + 1))
    return moved


@settings(max_examples=40, deadline=None)
@given(
    rate=st.integers(200_000, 20_000_000),
    readers=st.lists(st.lists(st.integers(4_000, 1 << 20), min_size=1, max_size=20), min_size=1, max_size=16),
    seed=st.integers(0, 9),
)
def test_within_five_percent_over_ten_seconds_at_any_mix_of_sizes(
    rate: int, readers: list[list[int]], seed: int
) -> None:
    oversleep = random.Random(seed).choice([0, 0.0001, 0.001])
    if len(readers) * 4_000 / (oversleep + 1e-9) < rate * 2:
        oversleep = 0  # so small reads with so long sleeps would be slower by themselves
    assert _moved(TokenBucket(rate), readers, oversleep) == pytest.approx(rate * SECONDS, rel=0.05)


def test_ten_seconds_after_an_idle_minute_are_no_burst() -> None:
    """What was not used is not saved up."""
    bucket = TokenBucket(1_000_000)
    bucket.take(1, 0.0)
    moved, now = 0, 60.0
    while now < 70.0:
        moved += 10_000
        now += bucket.take(10_000, now)
    assert moved == pytest.approx(10_000_000, rel=0.05)


def test_a_thread_with_an_older_clock_waits_until_the_same_moment() -> None:
    bucket = TokenBucket(100)
    bucket.take(0, 10.0)
    assert bucket.take(100, 10.0) == pytest.approx(1.0)
    assert bucket.take(0, 9.5) == pytest.approx(1.5)


def test_reads_of_one_byte_are_the_least() -> None:
    assert TokenBucket(1).largest_read(64) == 1


def test_threads_share_it() -> None:
    """No take is lost: what is owed in the end is what all have taken."""
    bucket = TokenBucket(1000)
    threads = [threading.Thread(target=lambda: [bucket.take(1, 0.0) for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.take(0, 0.0) == pytest.approx(20.0)
