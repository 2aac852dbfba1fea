"""When a failed request is tried again: one frozen policy, pure decisions, tenacity around them."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

import anyio
from tenacity import AsyncRetrying, retry_if_exception_type

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("yaie_async")

Kind = Literal["connect", "read", "stall", "truncated", "range", "status"]


class TransientError(Exception):
    """A failure that may pass. Never leaves the fetch layer.

    Attributes:
        kind: what failed.
        status: HTTP status, or None where no answer came.
        wait: seconds that the server asked for (Retry-After, RateLimit), or None.
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
        attempts: failures in a row, without one new byte in between, after which it gives up.
        first_wait: seconds before the second attempt, doubled each time.
        longest_wait: seconds; a server may ask for more.
        budget: seconds of waiting between attempts, in all, that one piece of work may cost.
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
        """Whether `failures` in a row, or waiting longer in all than the budget, is enough."""
        return failures >= self.attempts or waited + next_wait > self.budget


class GaveUpError(Exception):
    """The policy is used up. Never leaves the fetch layer.

    Attributes:
        attempts: how many were made.
        last: the last failure.
    """

    def __init__(self, attempts: int, last: TransientError) -> None:
        super().__init__(f"{last} ({attempts} attempts)")
        self.attempts = attempts
        self.last = last


class _Tally:
    """Failures in a row and seconds waited, of one piece of work: progress resets the first, never the second."""

    def __init__(self, policy: RetryPolicy, progress: Callable[[], int], least: int) -> None:
        self._policy = policy
        self._progress = progress
        self._least = least
        self._seen = progress()
        self._failures = 0
        self._waited = 0.0
        self.next_wait = 0.0
        self.over = False

    def count(self, error: TransientError) -> None:
        seen = self._progress()
        self._failures = 1 if seen - self._seen >= self._least else self._failures + 1
        self._seen = seen
        self.next_wait = self._policy.wait_before(self._failures, error.wait, random.random())  # noqa: S311 - jitter
        self.over = self._policy.gives_up(self._failures, self._waited, self.next_wait)
        self._waited += self.next_wait


async def with_retries(
    policy: RetryPolicy,
    work: Callable[[], Awaitable[T]],
    *,
    about: Mapping[str, str | None] = {},
    progress: Callable[[], int] = lambda: 0,
    least: int = 1,
) -> T:
    """Run `work` until it returns, fails for good, or the policy is used up.

    `about` says in the log which model and file it is for. `progress` is a count that grows as bytes arrive:
    failures with at least `least` of them in between are not in a row.

    **Cancellation:** at once, also in a wait.

    **Raises:** GaveUpError, from the last TransientError; and whatever else `work` raises, at once.
    """
    tally = _Tally(policy, progress, least)
    attempts = 0

    async def counted() -> T:
        nonlocal attempts
        attempts += 1
        try:
            return await work()
        except TransientError as error:
            # Counted here: whether tenacity asks for `wait` or for `stop` first differs between its versions.
            tally.count(error)
            if not tally.over:
                facts = {**about, "retries": attempts, "seconds": tally.next_wait}
                logger.debug("asked again in %.1f s (retry %d): %s", tally.next_wait, attempts, error, extra=facts)
            raise

    try:
        try:
            return await counted()  # without tenacity's bookkeeping: a seventh of what the loop does for a range
        except TransientError:
            if tally.over:
                raise
        await anyio.sleep(tally.next_wait)
        retrying = AsyncRetrying(
            sleep=anyio.sleep,
            retry=retry_if_exception_type(TransientError),
            stop=lambda _state: tally.over,
            wait=lambda _state: tally.next_wait,
            reraise=True,
        )
        return await retrying(counted)
    except TransientError as last:
        raise GaveUpError(attempts, last) from (last.__cause__ or last)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait: `RateLimit: "api";r=0;t=55`, else `Retry-After` in either form."""
    limit = re.search(r"\br=0\b.*\bt=(\d+)", headers.get("ratelimit", ""))
    if limit:
        return float(limit[1])
    after = headers.get("retry-after", "").strip()
    if after.isdecimal():
        return float(after)
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None
