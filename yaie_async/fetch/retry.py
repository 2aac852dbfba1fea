"""When a failed request is retried: one frozen policy with pure decisions, applied by tenacity."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from yaie_async.core.errors import printable
from yaie_async.core.log import logger
from yaie_async.core.stall import StallWatch, current_watch
from yaie_async.fetch.failures import Asked, TransientError, gave_up

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long."""

    attempts: int = 6  # give up after this many failures in a row, without a new byte between them
    first_wait: float = 1.0  # seconds before the second attempt, doubled each time
    longest_wait: float = 16.0  # seconds; a server may ask for more
    budget: float = 300.0  # total seconds that one piece of work may wait between its attempts

    def wait_before(self, failures: int, asked: float | None, jitter: float) -> float:
        """Seconds to wait after `failures` failures in a row; `jitter` is 0.0 to 1.0."""
        wait = min(self.longest_wait, self.first_wait * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)
        return max(wait, asked or 0.0)

    def gives_up(self, failures: int, waited: float, next_wait: float) -> bool:
        """Return whether to stop after `failures` in a row, or because the next wait would exceed the budget."""
        return failures >= self.attempts or waited + next_wait > self.budget


async def retried(
    policy: RetryPolicy,
    work: Callable[[], Awaitable[T]],
    asked: Asked,
    *,
    progress: Callable[[], int] = lambda: 0,
    least: int = 1,
) -> T:
    """Run `work` until it returns, fails for good, or the policy is used up.

    `progress` grows as bytes arrive. Failures with at least `least` of them in between are not in a row.

    **Cancellation:** at once, also during a wait.

    **Raises:** HubUnavailableError or StalledError when the policy is used up; any other error of `work`, at once.
    """
    seen, failures = progress(), 0
    watch = current_watch.get() or StallWatch()

    def wait(state: RetryCallState) -> float:
        nonlocal seen, failures
        before, seen = seen, progress()
        failures = 1 if seen - before >= least else failures + 1
        return policy.wait_before(failures, _error(state).wait, random.random())  # noqa: S311 - jitter

    def stop(state: RetryCallState) -> bool:
        return policy.gives_up(failures, state.idle_for, state.upcoming_sleep)

    def log(state: RetryCallState) -> None:
        seconds, retries = state.upcoming_sleep, state.attempt_number
        facts = {**asked.facts, "retries": retries, "seconds": seconds}
        logger.debug("Retrying in %.1f s (retry %d): %s", seconds, retries, _error(state), extra=facts)
        watch.failed(printable(str(_error(state)).removeprefix(f"{asked.what}: "), 200), failures + 1, seconds)

    def give_up(state: RetryCallState) -> NoReturn:
        last = _error(state)
        raise gave_up(last, state.attempt_number, asked) from (last.__cause__ or last)

    # tenacity does all the retrying, but not a first attempt that succeeds: its bookkeeping would add a sixth to the
    # loop's CPU time for a range (155-185 µs to 1,000 µs for 4 MiB). A first attempt that fails is raised again in it.
    with watch.wanting():
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
