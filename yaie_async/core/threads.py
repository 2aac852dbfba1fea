"""How blocking work leaves the event loop: owned threads, and detached ones.

anyio's shield does not stop *native* asyncio cancellation (`asyncio.timeout`, `task.cancel()`, the Ctrl-C
of `asyncio.run`): `anyio.to_thread.run_sync` then returns at once while its thread still runs, and a
`finally: os.close(fd)` after it lets that thread write into whatever file got the same number. So a thread
that owns a descriptor is awaited to its end here, whatever happens to the task.

The threads are daemons of our own: the pool of anyio and the default executor are joined at interpreter exit,
which would keep Ctrl-C waiting for a build, and are shared with the application.
"""

from __future__ import annotations

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
import anyio.lowlevel

from yaie_async.core.affinity import Cores
from yaie_async.core.workers import Workers, is_there

T = TypeVar("T")


_POLL = 0.005  # seconds

# Seconds: how long the end of the process waits for detached work, and how often it is told to end meanwhile.
_PATIENCE = 1.0
_AGAIN = 0.05

_workers = Workers()
_detached: set[threading.Thread] = set()  # that run what the end of the process waits for


def _renew() -> None:
    global _workers  # noqa: PLW0603 - no thread of the parent is there in a forked child
    _workers = Workers()
    _detached.clear()


os.register_at_fork(after_in_child=_renew)


@atexit.register
def _end_threads() -> None:
    """End what runs or waits, before the interpreter does.

    A daemon thread is ended where it next asks for the GIL. Deep in torch's C++, as in a build whose load was cancelled
    by Ctrl-C, that aborted the process ("terminate called without an active exception", in 25 of 30 runs).
    """
    if _detached:
        with suppress(ImportError, AttributeError):  # another interpreter than CPython
            _end_detached()
    _workers.end_idle()


def _end_detached() -> None:
    import ctypes  # not before: most processes end without

    hook = sys.unraisablehook

    def not_ours(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type is not SystemExit:
            hook(lost)

    sys.unraisablehook = not_ours
    there = set(_detached)
    again, deadline = 0.0, time.monotonic() + _PATIENCE
    while there and (now := time.monotonic()) < deadline:
        if now >= again:  # once more, because it is lost where it is raised inside a destructor
            again = now + _AGAIN
            for thread in there & _detached:
                number, error = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(number, error)
        time.sleep(0.001)
        there = set(filter(is_there, there))


def cores() -> Cores:
    """What the threads that run owned work may run on."""
    return _workers.cores


class _Call(Generic[T]):
    """One function running in its own thread, and the event that tells the loop of its end."""

    def __init__(self, fn: Callable[[], T], name: str, *, last: bool = False, awaited_at_exit: bool = False) -> None:
        self.done = anyio.Event()
        self.ended = False
        self._fn = fn
        self._awaited_at_exit = awaited_at_exit
        self._tell = _teller()
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
        except BaseException as error:  # noqa: BLE001 - it is raised again in the task
            self._error = error
        finally:
            _detached.discard(self.thread)
            del self._fn  # what it closes over may be large, and the task may be gone
            self.ended = True
            with suppress(RuntimeError):  # the loop ended first: nobody waits
                self._tell(self.done.set)

    def result(self) -> T:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # breaks the cycle error -> traceback -> this frame -> self
        return self._value


def _teller() -> Callable[[Callable[[], object]], object]:
    """What makes this loop call a function soon, from any thread, which does not wait for it as anyio's would."""
    loop: Any = anyio.lowlevel.current_token().native_token
    tell: Callable[[Callable[[], object]], object] = (
        loop.call_soon_threadsafe if hasattr(loop, "call_soon_threadsafe") else loop.run_sync_soon
    )
    return tell


def reserve_threads(count: int) -> None:
    """Have `count` threads at hand for the calls of the next second."""
    _workers.reserve(count)


async def run_owned(fn: Callable[[], T], *, interrupt: Callable[[], None] | None = None, name: str = "io") -> T:
    """Run `fn` in a thread and return what it returns, after the thread has ended in every case.

    `fn` opens, uses and closes its descriptors itself; no task ever closes one under it.

    **Cancellation:** the first cancel (of any kind, KeyboardInterrupt included) calls `interrupt()` on the
    loop's thread, then the thread's end is awaited while further cancels are absorbed, then the first one
    is raised again. What `fn` returned is dropped. Without `interrupt`, `fn` must be short. `interrupt` is
    called again where a second Ctrl-C strikes inside it.

    **Raises:** what `fn` raises.
    """
    call = _Call(fn, name)
    try:
        await call.done.wait()
    except BaseException as error:  # noqa: BLE001 - it is raised again below
        first = error
    else:
        return call.result()
    await _see_end(call, interrupt)
    try:
        raise first
    finally:
        del first


async def _see_end(call: _Call[T], interrupt: Callable[[], None] | None) -> None:
    """Wait until the thread has ended, whatever strikes meanwhile."""
    # Entered once, and before the interrupt tells an impatient user that something happens: a Ctrl-C in the middle of
    # entering a scope has the task group outside fail by a RuntimeError.
    with anyio.CancelScope(shield=True):
        while not call.ended:
            try:
                if interrupt is not None:
                    interrupt()
                    interrupt = None
                # A wake-up can be lost to a Ctrl-C at the wrong bytecode; the flag can't.
                await anyio.sleep(_POLL)
            except BaseException as error:  # noqa: BLE001 - the first is what is told
                if isinstance(error, Exception):
                    interrupt = None  # it failed itself; a second Ctrl-C inside it has it called again


async def run_detached(fn: Callable[[], T], *, name: str, awaited_at_exit: bool = True) -> T:
    """Run `fn` in a thread that may outlive this task: DNS, imports, a stock build. It owns no file.

    The thread ends with it: torch keeps settings per thread, and nothing else is to run under those. Where the process
    ends first, SystemExit is raised in `fn`, and the process waits up to a second for it to end; with
    `awaited_at_exit=False` neither, for a call of C that nothing interrupts and that is no C++.

    **Cancellation:** control returns at once; the thread runs on to its end and its result is dropped.

    **Raises:** what `fn` raises.
    """
    call = _Call(fn, name, last=True, awaited_at_exit=awaited_at_exit)
    await call.done.wait()
    # To its very end: what torch keeps for a thread can't be destroyed beside an interpreter that ends, as that of a
    # script does that has what it wanted. The process was aborted ("terminate called"), in one of 16 runs.
    while call.thread.is_alive():  # noqa: ASYNC110 - nothing tells it
        await anyio.sleep(0.001)
    return call.result()
