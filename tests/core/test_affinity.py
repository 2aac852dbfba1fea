"""One core is kept free for the event loop, and each thread gets its own cores back afterwards."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from tests.support.waiting import until
from yaie_async.core.affinity import Cores
from yaie_async.core.threads import cores, run_detached, run_owned

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one core")

ALL = os.sched_getaffinity(0)


def is_one_less(found: set[int]) -> bool:
    return found < ALL and len(found) == len(ALL) - 1


class Reader:
    """A thread that gives way until `end`; with `imports` it asks the others to give way."""

    def __init__(self, shared: Cores, allowed: set[int] = ALL, *, imports: bool = False) -> None:
        self._end, self._there = threading.Event(), threading.Event()
        self._ask, self._allowed = shared.one_left_free if imports else shared.giving_way, allowed
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._there.wait(60)

    def _run(self) -> None:
        os.sched_setaffinity(0, self._allowed)
        with self._ask():
            self._there.set()
            self._end.wait(60)
        self.after = os.sched_getaffinity(0)

    @property
    def cores(self) -> set[int]:
        assert self._thread.native_id is not None
        return os.sched_getaffinity(self._thread.native_id)

    def end(self) -> set[int]:
        self._end.set()
        self._thread.join(60)
        return self.after


@contextmanager
def reading(*threads: Reader) -> Iterator[None]:
    try:
        yield
    finally:
        for thread in threads:
            thread.end()


def in_a_thread(fn: Callable[[], None]) -> None:
    """Run `fn` in a new thread, whose settings end with it."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fn()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    if errors:
        raise errors[0]


def test_all_threads_that_give_way_leave_the_same_core_free() -> None:
    """The core is free of the thread that asks, of threads that gave way before, and of later ones, until the end."""

    def check() -> None:
        shared = Cores()
        before = Reader(shared)
        with shared.one_left_free():
            during = Reader(shared)
            found = [before.cores, during.cores, os.sched_getaffinity(0)]
            assert is_one_less(found[0])
            assert found == [found[0]] * 3
        assert [before.cores, during.cores, os.sched_getaffinity(0)] == [ALL] * 3
        before.end()
        during.end()

    in_a_thread(check)


def test_other_threads_keep_their_cores() -> None:
    """The thread of the event loop and the application's threads keep all their cores."""
    shared, number = Cores(), threading.get_native_id()

    def check() -> None:
        with shared.one_left_free():
            assert os.sched_getaffinity(number) == ALL

    in_a_thread(check)


def test_a_thread_that_stops_giving_way_gets_its_cores_back() -> None:
    """Its cores come back at the end of its own block, while the core is still kept free."""

    def check() -> None:
        shared = Cores()
        with shared.one_left_free():
            assert Reader(shared).end() == ALL

    in_a_thread(check)


def test_the_last_of_several_gives_the_core_back() -> None:
    """The core stays free until the last of two importing threads has ended, even if the other one fails."""

    def check() -> None:
        shared = Cores()
        reader = Reader(shared)
        with pytest.raises(ValueError, match="stop"), shared.one_left_free():
            other = Reader(shared, imports=True)
            raise ValueError("stop")
        assert os.sched_getaffinity(0) == ALL
        assert is_one_less(reader.cores)
        assert is_one_less(other.cores)
        assert other.end() == ALL
        assert reader.cores == ALL
        reader.end()

    in_a_thread(check)


def test_a_thread_that_gives_way_may_ask_for_a_free_core() -> None:
    """The blocks may be nested in both orders, and the thread gets all its cores back at the end."""

    def check() -> None:
        shared = Cores()
        with shared.giving_way():
            with shared.one_left_free(), shared.giving_way():
                assert is_one_less(os.sched_getaffinity(0))
            assert os.sched_getaffinity(0) == ALL
            with reading(Reader(shared, imports=True)):
                assert is_one_less(os.sched_getaffinity(0))
        assert os.sched_getaffinity(0) == ALL

    in_a_thread(check)


def test_a_thread_that_may_use_one_core_keeps_it() -> None:
    """A thread that the application has pinned to one core stays there."""
    shared = Cores()
    reader = Reader(shared, {min(ALL)})
    with reading(reader):

        def check() -> None:
            with shared.one_left_free():
                assert reader.cores == {min(ALL)}

        in_a_thread(check)
        assert reader.cores == {min(ALL)}


def test_all_cores_are_seen_inside_all_seen() -> None:
    """The importing thread gets all its cores for a while, in nested blocks too; other threads are not changed."""

    def check() -> None:
        shared = Cores()
        reader = Reader(shared)
        with shared.one_left_free():
            with shared.all_seen():
                with shared.all_seen():
                    assert os.sched_getaffinity(0) == ALL
                assert os.sched_getaffinity(0) == ALL
                assert is_one_less(reader.cores)
            assert is_one_less(os.sched_getaffinity(0))
        with shared.all_seen():
            pass
        assert os.sched_getaffinity(0) == ALL
        reader.end()

    in_a_thread(check)


def _refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "not in this sandbox")


@pytest.mark.parametrize("lacking", ["sched_getaffinity", "sched_setaffinity"])
@pytest.mark.parametrize("how", ["missing", "refused"])
def test_nothing_fails_without_affinity(monkeypatch: pytest.MonkeyPatch, lacking: str, how: str) -> None:
    """On macOS, which has no affinity, and in a sandbox that refuses it, the imports run unchanged."""
    if how == "missing":
        monkeypatch.delattr(os, lacking)
    else:
        monkeypatch.setattr(os, lacking, _refuse)
    shared, done = Cores(), []

    def check() -> None:
        with shared.one_left_free(), shared.all_seen(), shared.giving_way():
            done.append(True)

    in_a_thread(check)
    assert done == [True]


def test_threads_start_and_end_while_cores_are_taken_and_given_back() -> None:
    """No thread loses a core for good, and no call is made for a thread that has ended."""
    shared, left, failed = Cores(), [], []

    def run(ask: Callable[[], Any]) -> None:
        try:
            for _ in range(100):
                with ask():
                    pass
                left.append(os.sched_getaffinity(0) == ALL)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(ask,)) for ask in [shared.giving_way, shared.one_left_free] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(left) > 100
    assert all(left)


@pytest.mark.anyio
async def test_owned_work_gives_way_and_detached_work_does_not(anyio_backend: object) -> None:
    """Threads that read bodies give way. A build does not, because the threads that it starts would stay confined."""
    entered, release = threading.Event(), threading.Event()

    def importing() -> set[int]:
        with cores().one_left_free():
            entered.set()
            assert release.wait(60)
            return os.sched_getaffinity(0)

    found: list[set[int]] = []

    async def import_() -> None:
        found.append(await run_detached(importing, name="imports"))

    await run_owned(lambda: None)  # leaves an idle thread
    async with anyio.create_task_group() as group:
        group.start_soon(import_)
        await until(entered.is_set)
        assert is_one_less(await run_owned(lambda: os.sched_getaffinity(0)))
        assert await run_detached(lambda: os.sched_getaffinity(0), name="build") == ALL
        release.set()
    assert is_one_less(found[0])
    assert await run_owned(lambda: os.sched_getaffinity(0)) == ALL
    assert os.sched_getaffinity(0) == ALL
