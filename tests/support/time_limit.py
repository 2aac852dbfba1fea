"""A test that exceeds its time limit fails alone, and the run goes on: a plugin of pytest.

pytest-timeout says which limit a test has. Its own timer is not used: uvloop loses an exception that a signal handler
raises, trio's test runner waits forever after one, and an exception between two phases of a test ends the whole run.
Three steps follow each other, half the limit apart:

1. A coroutine is cancelled at its limit.
2. SIGALRM raises in the main thread, only while a phase of a test runs, where pytest reports it for that test.
3. A thread in C ends the process. pytest-xdist reports the test as failed, and runs the others in a new process.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import inspect
import os
import signal
import time
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any

import anyio
import pytest

_Test = Callable[..., Coroutine[Any, Any, None]]

_limit = pytest.StashKey[float]()
_deadline = pytest.StashKey[float]()
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # before pytest captures the output of tests


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Keep the limit that pytest-timeout read for this test; the result makes it start no timer of its own."""
    item.stash[_limit] = settings.timeout
    item.stash[_deadline] = time.monotonic() + settings.timeout
    return True


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test) and _deadline in pyfuncitem.stash:
        pyfuncitem.obj = _cancelled_at_its_limit(pyfuncitem, test)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


def _cancelled_at_its_limit(item: pytest.Item, test: _Test) -> _Test:
    @functools.wraps(test)
    async def limited(**fixtures: Any) -> None:
        scope = None
        try:
            with anyio.fail_after(item.stash[_deadline] - time.monotonic()) as scope:
                await test(**fixtures)
        except TimeoutError as error:
            if scope is None or not scope.cancelled_caught:
                raise
            raise TimeoutError(_message(item)) from error  # its traceback shows where the test was

    return limited


def _message(item: pytest.Item) -> str:
    return f"The test did not end within its limit of {item.stash[_limit]:g} s."


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if _deadline not in item.stash:
        return (yield)
    step = item.stash[_limit] / 2
    seconds = max(item.stash[_deadline] - time.monotonic(), step)  # a teardown has time after a test that had none left
    if inspect.iscoroutinefunction(getattr(item, "obj", None)):
        seconds += step

    def fail(_number: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback(item.config.stash[_stderr], all_threads=True)
        pytest.fail(_message(item))

    signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + step, exit=True, file=item.config.stash[_stderr])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)


pytest_runtest_setup = pytest_runtest_teardown = pytest_runtest_call


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, object, object]:
    """Keep the garbage collector out of reports.

    A loop that a failed test left behind may be destroyed while `ast.parse` reads the test's source. Its error is
    formatted, which calls `ast.parse` again, and the outer call raises SystemError (CPython 3.11's gh-106905).
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
