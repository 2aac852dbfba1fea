"""Task groups that raise a single error, and calls that share one result."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.support.waiting import until
from yaie_async.core.errors import LoaderError, ModelNotFoundError, PrefetchError
from yaie_async.core.tasks import SharedCall, task_group

pytestmark = pytest.mark.anyio


# -- SharedCall ---------------------------------------------------------------------------------------------


async def test_concurrent_callers_share_one_run(anyio_backend: Any) -> None:
    """Concurrent and later callers get the same object from the first caller's work."""
    shared: SharedCall[object] = SharedCall()
    runs: list[int] = []
    release = anyio.Event()
    results: list[object] = []

    async def work() -> object:
        runs.append(1)
        await release.wait()
        return object()

    async def call() -> None:
        results.append(await shared(work))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(call)
        await until(lambda: runs)
        release.set()
    results.append(await shared(work))
    assert len(runs) == 1
    assert len(set(map(id, results))) == 1
    assert len(results) == 6
    assert shared.result is results[0]


async def test_a_waiter_takes_over_when_the_working_caller_is_cancelled(anyio_backend: Any) -> None:
    """If the caller that does the work is cancelled, exactly one waiter starts over, and all others get its result."""
    shared: SharedCall[str] = SharedCall()
    runs: list[str] = []
    release = anyio.Event()
    results: list[str] = []

    async def call(name: str, scope: anyio.CancelScope) -> None:
        async def work() -> str:
            runs.append(name)
            await release.wait()
            return name

        with scope:
            results.append(await shared(work))

    async with anyio.create_task_group() as group:
        first = anyio.CancelScope()
        group.start_soon(call, "first", first)
        await until(lambda: runs)
        for name in ("second", "third"):
            group.start_soon(call, name, anyio.CancelScope())
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await until(lambda: len(runs) == 2)
        await anyio.wait_all_tasks_blocked()
        release.set()
    assert len(runs) == 2
    assert results == [runs[1]] * 2


async def test_a_cancelled_waiter_does_not_affect_the_others(anyio_backend: Any) -> None:
    """A cancelled waiter leaves the work and the other callers alone."""
    shared: SharedCall[int] = SharedCall()
    release = anyio.Event()
    runs: list[int] = []
    results: list[int] = []

    async def work() -> int:
        runs.append(1)
        await release.wait()
        return 7

    async def call() -> None:
        results.append(await shared(work))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await until(lambda: runs)
        with anyio.move_on_after(0.01):
            await shared(work)
        release.set()
    assert (results, len(runs)) == ([7], 1)


async def test_each_waiter_gets_its_own_error(anyio_backend: Any) -> None:
    """Each caller gets its own instance of a failure, equal in type, text, attributes and cause."""
    shared: SharedCall[int] = SharedCall()
    release = anyio.Event()
    errors: list[ModelNotFoundError] = []
    runs: list[int] = []

    async def work() -> int:
        runs.append(1)
        await release.wait()
        raise ModelNotFoundError("not there", model="org/name", status=404) from OSError("root")

    async def call() -> None:
        try:
            await shared(work)
        except ModelNotFoundError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
        await until(lambda: runs)
        await anyio.wait_all_tasks_blocked()
        release.set()
    assert len(runs) == 1
    assert len(set(map(id, errors))) == 3
    for error in errors:
        assert (str(error), error.model, error.status) == ("not there", "org/name", 404)
        assert repr(error.__cause__) == "OSError('root')"


async def test_a_failure_is_not_remembered(anyio_backend: Any) -> None:
    """After a failure the next call tries again, and `forget` makes it try again after a success."""
    shared: SharedCall[int] = SharedCall()
    outcomes: list[Exception | int] = [LoaderError("first"), 2, 3]

    async def work() -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(LoaderError, match="first"):
        await shared(work)
    assert shared.result is None
    assert await shared(work) == 2
    assert await shared(work) == 2
    shared.forget()
    assert await shared(work) == 3


async def test_loops_in_different_threads_share_one_run(anyio_backend: Any) -> None:
    """The second loop looks now and then, and meanwhile has something to do."""
    shared: SharedCall[object] = SharedCall()
    results: list[object] = []
    entered: list[str] = []

    @asynccontextmanager
    async def elsewhere() -> AsyncIterator[None]:
        entered.append("entered")
        yield
        entered.append("left")

    async def never() -> object:
        raise AssertionError

    def other() -> None:
        async def call() -> None:
            results.append(await shared(never, elsewhere=elsewhere))

        asyncio.run(call())

    async def mine() -> object:
        thread.start()
        await until(lambda: entered)
        return object()

    thread = threading.Thread(target=other)
    results.append(await shared(mine))
    await until(lambda: not thread.is_alive())
    assert results == [results[0]] * 2
    assert entered == ["entered", "left"]


# -- task_group ---------------------------------------------------------------------------------------------


async def test_an_error_of_a_child_comes_out_bare(anyio_backend: Any) -> None:
    """The first error of a child is raised itself, with its cause, through nested groups too."""

    async def fail() -> None:
        try:
            raise OSError("root")
        except OSError as error:
            raise LoaderError("top") from error

    with pytest.raises(LoaderError, match="top") as caught:
        async with task_group() as outer:
            async with task_group() as inner:
                inner.start_soon(fail)
                await anyio.sleep_forever()
            outer.start_soon(fail)
    assert repr(caught.value.__cause__) == "OSError('root')"


async def test_an_error_of_the_block_comes_out_bare(anyio_backend: Any) -> None:
    """An error raised in the block itself cancels the children and is raised itself."""
    ended: list[bool] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    with pytest.raises(KeyError):
        async with task_group() as group:
            group.start_soon(child)
            await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            raise KeyError
    assert ended == [True]


async def test_a_prefetch_error_stays_a_group(anyio_backend: Any) -> None:
    """A PrefetchError is not unwrapped."""

    async def fail() -> None:
        raise PrefetchError("some", failures={"a": LoaderError("x")}, snapshots={"b": Path("/b")})

    with pytest.raises(PrefetchError) as caught:
        async with task_group() as group:
            group.start_soon(fail)
    assert list(caught.value.failures) == ["a"]


class Leaving(BaseException):
    """Stands for KeyboardInterrupt and SystemExit, which would end asyncio's loop at once."""


async def test_an_interrupt_is_not_dropped_for_an_error(anyio_backend: Any) -> None:
    """If one child is interrupted while another fails, the interrupt is raised, in whichever order they came."""

    async def leave(error: BaseException) -> None:
        await ready.wait()
        raise error

    for errors in ((LoaderError("x"), Leaving()), (Leaving(), LoaderError("x"))):
        ready = anyio.Event()
        with pytest.raises(Leaving):
            async with task_group() as group:
                for error in errors:
                    group.start_soon(leave, error)
                await anyio.wait_all_tasks_blocked()
                ready.set()
