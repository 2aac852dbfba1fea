"""Daemon threads that wait for more work, so that few have to be started while a load runs.

Handing over to one that waits is a `SimpleQueue.put`. Starting one takes the loop 60 µs at best; beside threads that
want the GIL all the time (an import, a build) it was 10-50 ms for each, most of it in `Thread.start`'s wait for the
new thread's first turn.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable

from yaie_async.core.affinity import Cores

# Seconds that a thread waits for more work before it ends. No thread outlives a load by more.
_PATIENCE = 1.0

_IDLE = "idle yaie_async"


class _NeverAwaited(threading.Event):
    """In the place of a thread's own event: `Thread.start` returns at once, all else is as it was."""

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - nothing is waited for
        return self.is_set()


class Workers:
    """Runs each piece of work at once, in a thread that is its own for as long as it takes.

    Attributes:
        cores: what the threads may run on; a last piece of work is its own affair.
    """

    def __init__(self) -> None:
        self.cores: Cores = Cores()
        self._work: queue.SimpleQueue[tuple[str, bool, Callable[[], object]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0  # threads that wait for work, less the work that waits for them

    def reserve(self, count: int) -> None:
        """Have `count` threads waiting for work, for as long as a thread waits.

        glibc's loader lets no thread begin while it opens a large library, and Python keeps the GIL meanwhile: one
        start beside the opening of torch's libraries held the loop for 20 ms.
        """
        with self._lock:
            missing = max(0, count - self._free)
            self._free += missing
        for _ in range(missing):
            self._start()

    def submit(self, work: Callable[[], object], *, name: str, last: bool) -> None:
        """Run `work`, which raises nothing, in a thread of that name. With `last` the thread ends afterwards."""
        with self._lock:
            start = self._free == 0
            self._free -= not start
        # In this order, a Ctrl-C between two steps costs a thread that waits for nothing, never a piece of work.
        if start:
            self._start()
        self._work.put((name, last, work))

    def end_idle(self) -> None:
        """End the threads that wait for work, and wait until they are gone; what runs goes on.

        For the end of the process. OpenSSL frees what it keeps for a thread when that ends, and what it keeps for all
        threads when the process ends. Where both happened at once the heap was corrupted ("double free or corruption
        (fasttop)", "malloc_consolidate(): unaligned fastbin chunk detected").
        """
        with self._lock:
            free = self._free
        idle = [thread for thread in threading.enumerate() if thread.name == _IDLE]
        for _ in range(free):
            self.submit(lambda: None, name=_IDLE, last=True)
        deadline = time.monotonic() + _PATIENCE
        while any(map(is_there, idle)) and time.monotonic() < deadline:
            time.sleep(0.001)

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=_IDLE, daemon=True)
        thread._started = _NeverAwaited()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way
        thread.start()

    def _serve(self) -> None:
        with self.cores.giving_way():
            last = self._serve_all_but_last()
        if last is not None:
            last()

    def _serve_all_but_last(self) -> Callable[[], object] | None:
        """Do what comes, until nothing does; what comes with `last` is returned."""
        thread = threading.current_thread()
        while True:
            try:
                name, last, work = self._work.get(timeout=_PATIENCE)
            except queue.Empty:
                with self._lock:
                    if self._free > 0:
                        self._free -= 1
                        return None
                continue  # the thread was counted on, and its work is about to come
            thread.name = name
            if last:
                return work
            work()
            del work  # what it closes over may be large
            thread.name = _IDLE
            with self._lock:
                self._free += 1


def is_there(thread: threading.Thread) -> bool:
    """Whether a thread has not ended altogether: for Python it has before libraries destroy what they keep for it."""
    number = thread.native_id  # None before its first turn
    return number is None or thread.is_alive() or os.path.exists(f"/proc/self/task/{number}")
