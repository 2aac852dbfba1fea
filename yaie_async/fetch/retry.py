"""When a failed request is retried: one frozen policy with pure decisions, applied by tenacity."""

import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, NoReturn, TypeVar

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from yaie_async.core.log import logger

T = TypeVar("T")

Kind = Literal["connect", "read", "stall", "truncated", "range", "status"]


class TransientError(Exception):
    """Raised for a failure that may pass. Never leaves the fetch layer.

    Attributes:
        kind: what failed.
        status: HTTP status, or None without a response.
        wait: seconds that the server asked to wait (Retry-After, RateLimit), or None.
    """

    def __init__(self, text: str, *, kind: Kind, status: int | None = None, wait: float | None = None) -> None:
        super().__init__(text)
        self.kind: Kind = kind
        self.status = status
        self.wait = wait


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long.

    Attributes:
        attempts: give up after this many failures in a row, without a new byte between them.
        first_wait: seconds before the second attempt, doubled each time.
        longest_wait: seconds. A server may ask for more.
        budget: total seconds that one piece of work may wait between its attempts.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 16.0
    budget: float = 300.0

    def wait_before(self, failures: int, asked: float | None, jitter: float) -> float:
        """Seconds to wait after `failures` failures in a row; `jitter` is 0.0 to 1.0."""
        wait = min(self.longest_wait, self.first_wait * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)
        return max(wait, asked or 0.0)

    def gives_up(self, failures: int, waited: float, next_wait: float) -> bool:
        """Return whether to stop after `failures` in a row, or because the next wait would exceed the budget."""
        return failures >= self.attempts or waited + next_wait > self.budget


class GaveUpError(Exception):
    """Raised when the policy is used up. Never leaves the fetch layer.

    Attributes:
        attempts: number of attempts made.
        last: the last failure.
    """

    def __init__(self, attempts: int, last: TransientError) -> None:
        super().__init__(f"{last} ({attempts} attempts)")
        self.attempts = attempts
        self.last = last


async def with_retries(
    policy: RetryPolicy,
    work: Callable[[], Awaitable[T]],
    *,
    about: Mapping[str, str | None] = {},
    progress: Callable[[], int] = lambda: 0,
    least: int = 1,
) -> T:
    """Run `work` until it returns, fails for good, or the policy is used up.

    `about` names the model and the file in the log. `progress` is a count that grows as bytes arrive. Failures with at
    least `least` of them in between are not in a row.

    **Cancellation:** at once, also during a wait.

    **Raises:** GaveUpError, from the last TransientError; any other error of `work`, at once.
    """
    seen, failures = progress(), 0

    def count(_state: RetryCallState) -> None:
        nonlocal seen, failures
        before, seen = seen, progress()
        failures = 1 if seen - before >= least else failures + 1

    def wait(state: RetryCallState) -> float:
        return policy.wait_before(failures, _error(state).wait, random.random())  # noqa: S311 - jitter

    def stop(state: RetryCallState) -> bool:
        return policy.gives_up(failures, state.idle_for, state.upcoming_sleep)

    def log(state: RetryCallState) -> None:
        seconds, retries = state.upcoming_sleep, state.attempt_number
        facts = {**about, "retries": retries, "seconds": seconds}
        logger.debug("Retrying in %.1f s (retry %d): %s", seconds, retries, _error(state), extra=facts)

    def give_up(state: RetryCallState) -> NoReturn:
        last = _error(state)
        raise GaveUpError(state.attempt_number, last) from (last.__cause__ or last)

    # tenacity does all the retrying, but not a first attempt that succeeds: its bookkeeping would add a sixth to the
    # loop's CPU time for a range (155-185 µs to 1,000 µs for 4 MiB). A first attempt that fails is raised again in it.
    try:
        return await work()
    except TransientError as error:
        failed = [error]

    async def attempt() -> T:
        if failed:
            raise failed.pop()
        return await work()

    retrying = AsyncRetrying(
        sleep=anyio.sleep,
        retry=retry_if_exception_type(TransientError),
        after=count,
        wait=wait,
        stop=stop,
        before_sleep=log,
        retry_error_callback=give_up,
    )
    return await retrying(attempt)


def _error(state: RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError)
    return error


_LONGEST_ASKED = 1e9  # seconds; a longer number is no wait, and may be more than a float holds


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: `RateLimit: "api";r=0;t=55`, else `Retry-After` in either form."""
    limit = re.search(r"\br=0\b.*\bt=(\d+)", headers.get("ratelimit", ""))
    if limit:
        return min(float(limit[1]), _LONGEST_ASKED)
    after = headers.get("retry-after", "").strip()
    if after.isdecimal():
        return min(float(after), _LONGEST_ASKED)
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None
