"""Which failures of a load are worth waiting for, and how long. Pure; imported off the loop."""

from __future__ import annotations

from yaie_async.core.errors import HubUnavailableError
from yaie_async.fetch.retry import RetryPolicy, asked_wait

# Below this lie the retries of single requests, seconds to minutes of them: what comes up here is a longer outage.
_POLICY = RetryPolicy(first_wait=2.0, longest_wait=60.0)


def wait_before_retry(error: Exception, failures: int, jitter: float) -> float | None:
    """Seconds to wait after `failures` in a row, or None for a failure that no waiting cures.

    `jitter` is 0.0 to 1.0. A Hub that is down, falls silent or limits its rate comes back, at the time that it names
    if it does (`Retry-After`); a certificate, a redirect or an answer that no Hub gives is found at the first attempt,
    and stays.
    """
    if not isinstance(error, HubUnavailableError):
        return None
    passing = error.status is not None and (error.status >= 500 or error.status in (408, 425, 429))
    if error.attempts < 2 and not passing:
        return None
    return _POLICY.wait_before(failures, asked_wait(error.response.headers), jitter)
