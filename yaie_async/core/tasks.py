"""Task groups that raise a single error, and calls that share one result."""

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

T = TypeVar("T")


@asynccontextmanager
async def task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group that raises its first error itself, not in an exception group, so that `except LoaderError` works.

    Only the groups that task groups make are unwrapped (by exact type): a `PrefetchError` stays a group.

    **Cancellation:** as `anyio.create_task_group`: all children are cancelled and awaited.

    **Raises:** the first error of the block or a child; a KeyboardInterrupt or SystemExit before all others.
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
        # KeyboardInterrupt and SystemExit take precedence over errors.
        error = min(error.exceptions, key=lambda inner: isinstance(inner, Exception))
    return error


@dataclass(eq=False)
class _Flight:
    """One run of the work on one event loop."""

    done: anyio.Event
    error: Exception | None = None  # stays None if it is cancelled


class SharedCall(Generic[T]):
    """Work that is done once for all callers, on any event loop.

    The first caller does the work in its own task, and callers on the same loop wait for it. The result is kept. A
    failure is not: each waiter gets a copy of the error, and the next call tries again.
    """

    def __init__(self) -> None:
        self._results: list[T] = []
        self._flights: dict[object, _Flight] = {}

    @property
    def result(self) -> T | None:
        """The kept result, or None before there is one."""
        return self._results[0] if self._results else None

    def forget(self) -> None:
        """Drop the kept result: the next call does the work again."""
        self._results.clear()

    async def __call__(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return the kept result, or the result of `work()`.

        **Cancellation:** if a waiter is cancelled, the work goes on. If the caller that does the work is cancelled,
        the next waiter starts over with its own `work`.

        **Raises:** what `work` raises; each waiter gets its own instance, with the same cause.
        """
        # By loop, because an event can only be awaited on its own loop.
        loop = anyio.lowlevel.current_token()
        while not self._results:
            flight = self._flights.get(loop)
            if flight is None:
                flight = self._flights[loop] = _Flight(anyio.Event())
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
