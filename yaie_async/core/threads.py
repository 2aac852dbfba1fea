"""The two ways in which blocking work leaves the event loop: owned and detached threads.

anyio's shield does not stop *native* asyncio cancellation (`asyncio.timeout`, `task.cancel()`, the Ctrl-C of
`asyncio.run`). On such a cancel `anyio.to_thread.run_sync` returns at once while its thread runs on. After a
`finally: os.close(fd)` the thread then writes into any other file that gets the same number. Here a thread that owns
a descriptor is always awaited to its end.

The threads are daemons of this package. The thread pools of anyio and of asyncio's default executor are shared with
the application, and joined when the interpreter exits, so that a Ctrl-C would wait for a build.
"""

import atexit
import contextvars
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from yaie_async.core.affinity import Cores
from yaie_async.core.loops import Loop
from yaie_async.core.workers import Workers, is_there

T = TypeVar("T")

_POLL = 0.005  # seconds

# Seconds that the end of the process waits for detached work, and between two exceptions that are raised in it.
_PATIENCE = 1.0
_RAISE_AGAIN = 0.05

_workers = Workers()
_detached: set[threading.Thread] = set()  # running threads that the end of the process waits for


def _renew() -> None:
    global _workers  # noqa: PLW0603 - a forked child has none of the parent's threads
    _workers = Workers()
    _detached.clear()


os.register_at_fork(after_in_child=_renew)


@atexit.register
def _end_threads() -> None:
    """End detached work and idle threads: the ending interpreter kills a daemon thread that asks for the GIL.

    Deep in torch's C++, as in a build whose load was cancelled by Ctrl-C, that aborted the process ("terminate called
    without an active exception", in 25 of 30 runs).
    """
    if _detached:
        _end_detached()
    _workers.end_idle()


def _end_detached() -> None:
    try:
        import ctypes  # only here: most processes end without detached work

        raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
    except (ImportError, AttributeError):
        return  # not CPython
    hook = sys.unraisablehook

    def hide_exit(unraisable: Any) -> None:
        if unraisable.exc_type is not SystemExit:
            hook(unraisable)

    sys.unraisablehook = hide_exit
    threads = set(_detached)
    next_raise, deadline = 0.0, time.monotonic() + _PATIENCE
    while threads and (now := time.monotonic()) < deadline:
        if now >= next_raise:  # repeated, because an exception inside a destructor is swallowed
            next_raise = now + _RAISE_AGAIN
            for thread in threads & _detached:
                raise_in_thread(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        time.sleep(0.001)
        threads = set(filter(is_there, threads))


def cores() -> Cores:
    """The cores that the threads of owned work may run on."""
    return _workers.cores


class _Call(Generic[T]):
    """One function that runs in its own thread, and the event that is set on the loop when it ends."""

    def __init__(self, fn: Callable[[], T], name: str, *, last: bool = False, awaited_at_exit: bool = False) -> None:
        self.done = anyio.Event()
        self.ended = False
        self._fn = fn
        self._awaited_at_exit = awaited_at_exit
        self._loop = Loop()
        self.thread: threading.Thread
        self._value: T
        self._error: BaseException | None = None
        work = partial(contextvars.copy_context().run, self._run)
        _workers.submit(work, name=f"yaie_async {name}", last=last)

    def _run(self) -> None:
        self.thread = threading.current_thread()
        try:
            if self._awaited_at_exit:
                _detached.add(self.thread)
            self._value = self._fn()
        except BaseException as error:  # noqa: BLE001 - `result` raises it in the task
            self._error = error
        finally:
            _detached.discard(self.thread)
            del self._fn  # its closure may be large, and the task may be gone
            self.ended = True
            with suppress(RuntimeError):  # the loop has been closed
                self._loop.tell(self.done.set)

    def result(self) -> T:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # break the cycle error -> traceback -> this frame -> self
        return self._value


def reserve_threads(count: int) -> None:
    """Start threads now, so that `count` of them are idle for the calls of the next second."""
    _workers.reserve(count)


async def run_owned(fn: Callable[[], T], *, interrupt: Callable[[], None] | None = None, name: str = "io") -> T:
    """Run `fn` in a thread and return its result. Control never returns before the thread has ended.

    `fn` opens, uses and closes its descriptors itself; no task ever closes one that it uses.

    **Cancellation:** the first cancellation (of any kind, KeyboardInterrupt included) calls `interrupt()` on the
    loop's thread. Further ones are absorbed until the thread has ended; then the first one is raised again, and the
    result of `fn` is dropped. Without `interrupt`, `fn` must be short. If a KeyboardInterrupt hits inside `interrupt`,
    it is called again.

    **Raises:** what `fn` raises.
    """
    call = _Call(fn, name)
    try:
        await call.done.wait()
    except BaseException as error:  # noqa: BLE001 - raised again below
        first = error
    else:
        return call.result()
    # Entered once, and before `interrupt`, after which an impatient user may press Ctrl-C again: a Ctrl-C while a scope
    # is being entered makes the enclosing task group fail with a RuntimeError.
    with anyio.CancelScope(shield=True):
        while not call.ended:
            try:
                if interrupt is not None:
                    interrupt()
                    interrupt = None
                # The flag is polled, because a Ctrl-C at the wrong bytecode can lose a wake-up.
                await anyio.sleep(_POLL)
            except BaseException as error:  # noqa: BLE001 - only the first one is raised
                if isinstance(error, Exception):
                    interrupt = None  # it failed; after a KeyboardInterrupt inside it, it is called again
    try:
        raise first
    finally:
        del first


async def run_detached(fn: Callable[[], T], *, name: str, awaited_at_exit: bool = True) -> T:
    """Run `fn` in a thread that may outlive this task: DNS, imports, a stock build. `fn` owns no file.

    The thread runs nothing else afterwards, because torch keeps settings per thread. If the process ends first,
    SystemExit is raised in `fn`, and the process waits up to a second for its end. With `awaited_at_exit=False` it does
    neither: for a call of C, not C++, that can't be interrupted.

    **Cancellation:** control returns at once; the thread runs to its end, and its result is dropped.

    **Raises:** what `fn` raises.
    """
    call = _Call(fn, name, last=True, awaited_at_exit=awaited_at_exit)
    await call.done.wait()
    # Wait until the thread is gone: torch's data of a thread must not be destroyed while the interpreter ends, for
    # example that of a script that has its result. That aborted the process ("terminate called") in one of 16 runs.
    while call.thread.is_alive():  # noqa: ASYNC110 - the end of a thread has no event
        await anyio.sleep(0.001)
    return call.result()
