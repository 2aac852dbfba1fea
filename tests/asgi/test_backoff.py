"""Tests of the backoff: which failures are retried, and after how long."""

import pytest

from yaie_async import (
    DiskFullError,
    GatedModelError,
    HubUnavailableError,
    ModelNotFoundError,
    OfflineError,
    StalledError,
)
from yaie_async.asgi.backoff import wait_before_retry


@pytest.mark.parametrize(
    "error",
    [
        HubUnavailableError("gave up", attempts=6),
        HubUnavailableError("gave up", attempts=6, status=503),
        HubUnavailableError("it asked for an hour", attempts=1, status=429),
        StalledError("silence", attempts=2),
    ],
)
def test_an_outage_is_waited_for(error: Exception) -> None:
    """The wait doubles with each failure up to a minute, with jitter so that many servers don't retry at once."""
    assert [wait_before_retry(error, failures, 1.0) for failures in (1, 2, 3, 9)] == [2.0, 4.0, 8.0, 60.0]
    assert wait_before_retry(error, 1, 0.0) == 1.0


def test_the_hub_may_say_when() -> None:
    """A load is not retried before the time in Retry-After."""
    error = HubUnavailableError("gave up", attempts=1, status=429, headers={"Retry-After": "1000"})
    assert wait_before_retry(error, 1, 1.0) == 1000.0


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFoundError("no such model"),
        GatedModelError("gated", status=403),
        OfflineError("offline"),
        DiskFullError("full", needed=2, free=1, path="/"),
        HubUnavailableError("a certificate", attempts=1),
        HubUnavailableError("HTTP 418", attempts=1, status=418),
        ValueError("ours"),
    ],
)
def test_what_waiting_does_not_cure_is_not(error: Exception) -> None:
    """Permanent failures are not retried."""
    assert wait_before_retry(error, 1, 1.0) is None
