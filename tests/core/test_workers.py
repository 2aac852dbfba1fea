"""Submitted work runs at once, in threads that are reused and end when idle."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.waiting import until
from yaie_async.core import workers
from yaie_async.core.threads import run_owned
from yaie_async.core.workers import Workers


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 0.02)


class Log:
    """Submits work that records the thread it runs in."""

    def __init__(self, pool: Workers) -> None:
        self._pool = pool
        self._ran: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def submit(self, *, last: bool = False) -> None:
        self._pool.submit(lambda: self._ran.put(threading.current_thread()), name="yaie_async test", last=last)

    def wait(self) -> threading.Thread:
        return self._ran.get(timeout=60)

    def run(self, *, last: bool = False) -> threading.Thread:
        self.submit(last=last)
        return self.wait()


def _has_ended(thread: threading.Thread) -> bool:
    return not thread.is_alive()


def test_all_work_runs_at_once() -> None:
    """Each of many pieces of work gets a thread: none waits for another to end."""
    pool, together, met = Workers(), threading.Barrier(30), threading.Semaphore(0)

    def meet() -> None:
        together.wait(60)
        met.release()

    for _ in range(30):
        pool.submit(meet, name="yaie_async test", last=False)
    for _ in range(30):
        assert met.acquire(timeout=60)


@pytest.mark.anyio
async def test_a_thread_is_reused_and_ends_when_idle(anyio_backend: object) -> None:
    """Threads wait for more work for a while, and not for ever."""
    log = Log(Workers())
    used = {log.run() for _ in range(50)}
    assert len(used) < 10
    await until(lambda: not any(thread.is_alive() for thread in used))
    assert log.run() not in used


@pytest.mark.anyio
async def test_a_last_piece_of_work_ends_its_thread(anyio_backend: object) -> None:
    """Torch's settings of a thread never apply to other work."""
    log = Log(Workers())
    for _ in range(5):
        last = log.run(last=True)
        assert log.run() is not last
        await until(partial(_has_ended, last))


def test_work_submitted_while_its_thread_gives_up_waiting_is_done() -> None:
    """A thread that work was submitted to keeps waiting for it, however long it takes to arrive."""

    class Late(queue.SimpleQueue[Any]):
        delay = 0.0

        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            time.sleep(self.delay)
            super().put(item, block, timeout)

    pool = Workers()
    log, pool._work = Log(pool), Late()
    thread = log.run()
    Late.delay = 2 * workers._PATIENCE
    assert log.run() is thread


def test_submit_does_not_wait_for_a_thread_to_begin() -> None:
    """Beside busy threads a new thread takes tens of milliseconds to run for the first time."""
    log, before, interval = Log(Workers()), set(threading.enumerate()), sys.getswitchinterval()
    sys.setswitchinterval(5)  # this thread loses the GIL only when it waits
    try:
        log.submit()
        (started,) = set(threading.enumerate()) - before
        assert not started.is_alive()  # as far as Python knows
    finally:
        sys.setswitchinterval(interval)
    assert log.wait() is started


def test_a_python_whose_threads_have_other_names() -> None:
    """Where `_started` is no event, `Thread.start` waits for the thread, and the work is done all the same."""
    code = """
from tests.support.renamed import renamed
start = "    def start(self):"
started = "    @property\\n    def _started(self): return self._begun.is_set()\\n\\n"
sys.modules["threading"] = threading = renamed("threading", {"_started": "_begun", start: started + start})
import queue
from yaie_async.core.workers import Workers
assert threading.Thread()._started is False
pool, ran = Workers(), queue.SimpleQueue()
pool.reserve(1)
for last in (False, True, False):
    pool.submit(lambda: ran.put(threading.current_thread().name), name="yaie_async test", last=last)
print(json.dumps([ran.get(timeout=10) for _ in range(3)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", "import json, sys\n" + code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == ["yaie_async test"] * 3


@pytest.mark.anyio
async def test_a_forked_child_has_threads_of_its_own(anyio_backend: object) -> None:
    """A forked child has neither the parent's threads nor their count."""
    await run_owned(lambda: None)
    child = os.fork()
    if not child:  # with a new loop, because the parent's must not be used
        try:
            answer: list[int] = []
            thread = threading.Thread(target=lambda: answer.append(anyio.run(run_owned, lambda: 3)))
            thread.start()
            thread.join(60)
            os._exit(0 if answer == [3] else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)  # noqa: ASYNC222 - the child is one of this test's own
    assert os.waitstatus_to_exitcode(status) == 0


def test_reserved_threads_do_the_next_work() -> None:
    """Work that is submitted to reserved threads starts no other thread."""
    pool = Workers()
    pool.reserve(5)
    pool.reserve(3)  # enough of them are idle already
    log, there = Log(pool), set(threading.enumerate())
    together = threading.Barrier(6)
    for _ in range(5):
        pool.submit(together.wait, name="yaie_async test", last=False)
    assert set(threading.enumerate()) <= there
    together.wait(60)
    assert log.run() in there
