"""An event loop as other threads see it, and tasks of the loop's own, which no caller can cancel."""

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

# Seconds between two looks from one loop at another.
FIRST_LOOK, _LONGEST_LOOK = 0.005, 0.05


class Loop:
    """The event loop that is running when this is made.

    Raises:
        RuntimeError: none is.
    """

    def __init__(self) -> None:
        # trio is asked first, because it may run as a guest of asyncio's loop. A thread may be importing it just now.
        lowlevel: Any = getattr(sys.modules.get("trio"), "lowlevel", None)
        in_trio = getattr(lowlevel, "in_trio_run", bool)()
        self.native: Any = lowlevel.current_trio_token() if in_trio else asyncio.get_running_loop()
        self._pid = os.getpid()
        self._thread = threading.current_thread()

    @property
    def is_here(self) -> bool:
        """Whether the caller runs on it."""
        return self._pid == os.getpid() and Loop().native is self.native

    @property
    def has_ended(self) -> bool:
        """Whether its tasks don't go on: it is closed, stands still, or is that of the parent of a forked child."""
        is_running = getattr(self.native, "is_running", self._thread.is_alive)  # a run of trio ends with its tasks
        return self._pid != os.getpid() or not is_running()

    def tell(self, function: Callable[[], object]) -> None:
        """Have it call a function soon. May be called from any thread.

        Raises:
            RuntimeError: it is closed.
        """
        call = getattr(self.native, "call_soon_threadsafe", None) or self.native.run_sync_soon
        call(function)

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until something is done on this loop, or it has ended. For tasks of other loops.

        **Cancellation:** at once.

        **Raises:** nothing.
        """
        wait = FIRST_LOOK
        while not done() and not self.has_ended:
            await anyio.sleep(wait)
            wait = min(2 * wait, _LONGEST_LOOK)


_tasks: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references


def spawn(work: Callable[[], Awaitable[None]], name: str) -> None:
    """Run `work`, which raises nothing, in a task of the running loop's own. The end of the loop cancels it.

    Raises:
        RuntimeError: no loop is running.
    """
    loop = Loop().native
    if isinstance(loop, asyncio.AbstractEventLoop):

        async def run() -> None:
            await work()

        task = loop.create_task(run(), name=name)
        # Those of loops that were closed with tasks left would stay for ever.
        _tasks.difference_update([each for each in tuple(_tasks) if each.get_loop().is_closed()])
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    else:
        sys.modules["trio"].lowlevel.spawn_system_task(work, name=name)
