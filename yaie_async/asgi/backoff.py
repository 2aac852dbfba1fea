"""The backoff between two attempts of a load: which failures are retried, and after how long. Pure.

Imported off the event loop, since `core.errors` is.
"""

from yaie_async.core.errors import HubUnavailableError
from yaie_async.fetch.failures import asked_wait
from yaie_async.fetch.retry import RetryPolicy

# Single requests have been retried for seconds to minutes before a load fails, so these waits are for longer outages.
_POLICY = RetryPolicy(first_wait=2.0, longest_wait=60.0)


def wait_before_retry(error: Exception, failures: int, jitter: float) -> float | None:
    """Return the seconds to wait after `failures` failures in a row, or None if `error` is not retried.

    `jitter` is 0.0 to 1.0. Outages, stalls and rate limits of the Hub are retried, not before the time in
    `Retry-After`. A bad certificate, redirect or response is permanent: it fails the first attempt and is not retried.
    """
    if not isinstance(error, HubUnavailableError):
        return None
    transient = error.status is not None and (error.status >= 500 or error.status in (408, 425, 429))
    if error.attempts < 2 and not transient:
        return None
    return _POLICY.wait_before(failures, asked_wait(error.response.headers), jitter)
