"""Which body is too slow to be waited for, and for how long its bytes may gather."""

import pytest

from yaie_async.fetch.pace import SLOWEST, Pace, lull


def _slow(rate: float, *, step: float = 1.0, seconds: float = 60, window: float | None = 10.0) -> bool:
    pace = Pace(window)
    return any(pace.too_slow(int(rate * step), step) for _ in range(int(seconds / step)))


def test_a_byte_a_second_is_too_slow_after_the_window_and_not_before() -> None:
    assert _slow(1)
    assert not _slow(1, seconds=9)


def test_at_the_limit_it_is_waited_for() -> None:
    assert not _slow(SLOWEST)
    assert _slow(SLOWEST - 1)


def test_each_window_is_looked_at_by_itself() -> None:
    """Megabytes at first are no excuse for a drip afterwards."""
    pace = Pace(10.0)
    assert not pace.too_slow(50_000_000, 10.0)
    assert not pace.too_slow(9, 9.0)
    assert pace.too_slow(1, 1.0)


def test_without_a_time_limit_any_rate_will_do() -> None:
    assert not _slow(0, window=None)


@pytest.mark.parametrize(
    ("came", "seconds", "expected"),
    [
        (48_000, 0.0032, 0.01),  # 15 MB/s: an eighth of 1 Gbit/s
        (128 * 1024, 0.001, 0.002),  # until as much has come as is worth it
        (256 * 1024, 0.001, 0.0),
        (1, 20.0, 0.01),
        (1000, 0.0, 0.0),  # it was there already
    ],
)
def test_bytes_gather_as_long_as_it_takes_and_a_hundredth_of_a_second_at_most(
    came: int, seconds: float, expected: float
) -> None:
    assert lull(came, seconds) == pytest.approx(expected)
