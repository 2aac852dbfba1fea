"""How blocking work leaves the event loop: owned threads, and detached ones.

anyio's shield does not stop *native* asyncio cancellation (`asyncio.timeout`, `task.cancel()`, the Ctrl-C
of `asyncio.run`): `anyio.to_thread.run_sync` then returns at once while its thread still runs, and a
`finally: os.close(fd)` after it lets that thread write into whatever file got the same number. So a thread
that owns a descriptor is awaited to its end here, whatever happens to the task.

The threads are daemons of our own, one a call (about 60 µs): the pool of anyio and the default executor are
joined at interpreter exit, which would keep Ctrl-C waiting for a build, and are shared with the application.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

T = TypeVar("T")


_POLL = 0.02  # seconds


class _NeverAwaited(threading.Event):
    """In the place of a thread's own event: `Thread.start` returns at once, all else is as it was."""

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - nothing is waited for
        return self.is_set()


class _Call(Generic[T]):
    """One function running in its own thread, and the event that tells the loop of its end."""

    def __init__(self, fn: Callable[[], T], name: str) -> None:
        self.done = anyio.Event()
        self.ended = False
        self._fn = fn
        self._token = anyio.lowlevel.current_token()
        self._value: T
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run,), name=f"yaie_async {name}", daemon=True)
        # `start` waits until the thread runs. Where others keep the GIL and the cores busy that was 10-50 ms of
        # the loop's time for each thread, and 40 % of it in all during a download at full rate.
        thread._started = _NeverAwaited()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way
        thread.start()

    def _run(self) -> None:
        try:
            self._value = self._fn()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the task
            self._error = error
        finally:
            del self._fn  # what it closes over may be large, and the task may be gone
            self.ended = True
            with suppress(anyio.RunFinishedError):  # the loop ended first: nobody waits
                anyio.from_thread.run_sync(self.done.set, token=self._token)

    def result(self) -> T:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # breaks the cycle error -> traceback -> this frame -> self
        return self._value


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
    first: BaseException | None = None
    while not call.ended:
        try:
            if first is None:
                await call.done.wait()
                continue
            if interrupt is not None:
                interrupt()
                interrupt = None
            # A wake-up can be lost to a Ctrl-C at the wrong bytecode; the flag can't.
            with anyio.move_on_after(_POLL, shield=True):
                await call.done.wait()
        except BaseException as error:  # noqa: BLE001 - the first is raised again below
            if first is None:
                first = error
            elif isinstance(error, Exception):
                interrupt = None  # it failed itself; a second Ctrl-C inside it has it called again
    if first is not None:
        try:
            raise first
        finally:
            del first
    return call.result()


async def run_detached(fn: Callable[[], T], *, name: str) -> T:
    """Run `fn` in a thread that may outlive this task: DNS, imports, a stock build. It owns no file.

    **Cancellation:** control returns at once; the thread runs on to its end and its result is dropped.

    **Raises:** what `fn` raises.
    """
    call = _Call(fn, name)
    await call.done.wait()
    return call.result()
