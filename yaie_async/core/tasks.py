"""Task groups that raise a single error, and calls that share one result."""

import copy
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import anyio
import anyio.abc

from yaie_async.core.loops import FIRST_LOOK, Loop

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
    """One run of the work."""

    loop: Loop  # that it runs on
    owner: object  # what `owner` was where it was begun
    done: anyio.Event
    callers: int = 1
    ended: bool = False
    error: Exception | None = None  # stays None if it is cancelled


# Set in the tasks that do work on behalf of something that may be stopped, which then fails its waiters.
owner: ContextVar[object] = ContextVar("owner", default=None)

# Of the whole process, for a few lines that never wait; an eager task runs within them. Used by this name only: a
# forked child has another.
lock: threading.RLock = threading.RLock()


def _renew() -> None:
    global lock  # noqa: PLW0603 - a thread that a forked child does not have may hold it
    lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)


class SharedCall(Generic[T]):
    """Work that is done once for all callers, on any event loop of the process.

    The first caller does the work in its own task, and all others wait for it. The result is kept. A failure is not:
    each waiter gets a copy of the error, and the next call tries again.
    """

    def __init__(self) -> None:
        self._results: list[T] = []
        self._flight: _Flight | None = None
        self.told: int = 0  # how many callers got the last error, the one who did the work among them

    @property
    def result(self) -> T | None:
        """The kept result, or None before there is one."""
        return self._results[0] if self._results else None

    def forget(self) -> None:
        """Drop the kept result: the next call does the work again."""
        self._results = []

    def fail(self, of: object, error: Exception) -> None:
        """Give the waiters this error, if the work is done on behalf of the `owner` given, which is about to end."""
        flight = self._flight
        if flight is not None and flight.owner is of:
            flight.error = error

    async def __call__(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        may_lead: Callable[[], bool] = lambda: True,
        elsewhere: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
    ) -> T:
        """Return the kept result, or the result of `work()`.

        Args:
            work: what this caller does if it is the first.
            may_lead: False has it wait for another to be the first; what it raises is raised here.
            elsewhere: entered while another loop works.

        **Cancellation:** if a waiter is cancelled, the work goes on. If the caller that does the work is cancelled,
        or its loop ends, the next waiter starts over with its own `work`.

        **Raises:** what `work` raises; each waiter gets its own instance, with the same cause.
        """
        while not (results := self._results):
            if self._free() and not may_lead():
                await anyio.sleep(FIRST_LOOK)
                continue
            flight, is_mine = self._join()
            if is_mine:
                return await self._lead(flight, work)
            try:
                if flight.loop.is_here:
                    await flight.done.wait()
                else:
                    async with elsewhere():
                        await flight.loop.until(partial(getattr, flight, "ended"))
            finally:
                flight.callers -= 1
            if flight.error is not None:
                raise copy.copy(flight.error) from flight.error.__cause__
        return results[0]

    def _free(self) -> bool:
        """Whether no caller works on it, apart from one that was stopped or whose loop has ended."""
        flight = self._flight
        return flight is None or flight.error is not None or flight.loop.has_ended

    def _join(self) -> tuple[_Flight, bool]:
        """The run that is under way, or a new one, and whether it is new."""
        mine = _Flight(Loop(), owner.get(), anyio.Event())
        with lock:
            if self._flight is None or self._free():
                self._flight = mine
            else:
                self._flight.callers += 1
            return self._flight, self._flight is mine

    async def _lead(self, flight: _Flight, work: Callable[[], Awaitable[T]]) -> T:
        try:
            result = await work()
        except Exception as error:
            flight.error = error
            self.told = flight.callers
            raise
        else:
            flight.error = None  # it was done before it could be stopped
            # A loop that stood still may go on when another has done the work.
            self._results = self._results or [result]
            return self._results[0]
        finally:
            with lock:
                if self._flight is flight:
                    self._flight = None
            flight.ended = True
            flight.done.set()
