"""Tasks that share one result, and task groups that raise one error."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

T = TypeVar("T")


@asynccontextmanager
async def task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group that raises its first error bare, never in an exception group of its own.

    Only the groups that task groups make are opened (by exact type): a `PrefetchError` stays what it is.
    Without this a caller's `except LoaderError` would miss an error that a child task raised.

    **Cancellation:** as `anyio.create_task_group`: all children are cancelled and awaited.
    """
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as errors:
        first = _first(errors)
        if first is errors:
            raise
        raise first from first.__cause__


def _first(error: BaseException) -> BaseException:
    while type(error) in (ExceptionGroup, BaseExceptionGroup):
        assert isinstance(error, BaseExceptionGroup)
        # KeyboardInterrupt and SystemExit are never dropped for an error beside them.
        error = min(error.exceptions, key=lambda inner: isinstance(inner, Exception))
    return error


class _Flight:
    """One run of the work on one event loop; `error` stays None when it was cancelled."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.error: Exception | None = None


class SharedCall(Generic[T]):
    """Work that is done once for all who await it, on any event loop.

    The first caller does the work in its own task; callers on the same loop wait for it. Its result is kept
    for ever. A failure is not: everyone who waited for it gets a copy of the error, the next call tries again.
    """

    def __init__(self) -> None:
        self._results: list[T] = []
        self._flights: dict[object, _Flight] = {}

    @property
    def result(self) -> T | None:
        """The kept result, or None."""
        return self._results[0] if self._results else None

    def forget(self) -> None:
        """Drop the kept result: the next call does the work again."""
        self._results.clear()

    async def __call__(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return the kept result, or the result of `work()`.

        **Cancellation:** of a waiter, nothing happens; of the one that does the work, the next waiter starts
        over with its own `work`.

        **Raises:** what `work` raises; each waiter gets its own instance, with the same cause.
        """
        # Event loops meet nowhere else: a flight is only ever waited for on the loop that runs it.
        loop = anyio.lowlevel.current_token().native_token
        while not self._results:
            flight = self._flights.get(loop)
            if flight is None:
                flight = self._flights[loop] = _Flight()
                try:
                    self._results[:] = [await work()]
                except Exception as error:
                    flight.error = error
                    raise
                finally:
                    del self._flights[loop]
                    flight.done.set()
            else:
                await flight.done.wait()
                if flight.error is not None:
                    raise copy.copy(flight.error) from flight.error.__cause__
        return self._results[0]
