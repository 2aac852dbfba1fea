"""Daemon threads that wait for more work, so that few have to be started while a load runs.

To hand work to a waiting thread is one `SimpleQueue.put`. To start one takes the loop 60 µs at best, 10-50 ms beside
threads that want the GIL all the time: `Thread.start` waits until the new thread has run for the first time.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from yaie_async.core.affinity import Cores

# Seconds that a thread waits for more work before it ends: the longest time that one outlives a load.
_PATIENCE = 1.0

_IDLE = "idle yaie_async"


class _NeverAwaited(threading.Event):
    """Replaces the event of a thread that `Thread.start` waits for, so that it returns at once."""

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - it does not wait
        return self.is_set()


class Workers:
    """Runs each piece of work at once, in a thread that does nothing else meanwhile."""

    def __init__(self) -> None:
        self.cores: Cores = Cores()  # that the threads may run on, except during a last piece of work
        self._work: queue.SimpleQueue[tuple[str, bool, Callable[[], object]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0  # waiting threads, less the pieces of work that were submitted to them

    def reserve(self, count: int) -> None:
        """Start threads until `count` of them wait for work.

        glibc starts no thread while it opens a large library, and Python keeps the GIL meanwhile: one start during
        the opening of torch's libraries held the loop for 20 ms.
        """
        with self._lock:
            missing = max(0, count - self._free)
            self._free += missing
        for _ in range(missing):
            self._start()

    def submit(self, work: Callable[[], object], *, name: str, last: bool) -> None:
        """Run `work`, which must not raise, in a thread of that name. With `last` the thread ends afterwards."""
        with self._lock:
            start = self._free == 0
            self._free -= not start
        # In this order a Ctrl-C between two steps may leave a thread without work, but no work without a thread.
        if start:
            self._start()
        self._work.put((name, last, work))

    def end_idle(self) -> None:
        """End the waiting threads, and wait until they are gone. Running work goes on.

        For the end of the process. OpenSSL frees the data of a thread when the thread ends, and the data of all
        threads when the process ends. Both at once corrupted the heap ("double free or corruption (fasttop)",
        "malloc_consolidate(): unaligned fastbin chunk detected").
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
        thread: Any = threading.Thread(target=self._serve, name=_IDLE, daemon=True)
        # The one private name of Python that is used: there is no public way. Where it is another, `start` waits.
        if isinstance(getattr(thread, "_started", None), threading.Event):
            thread._started = _NeverAwaited()  # noqa: SLF001
        thread.start()

    def _serve(self) -> None:
        with self.cores.giving_way():
            last = self._serve_all_but_last()
        if last is not None:
            last()

    def _serve_all_but_last(self) -> Callable[[], object] | None:
        """Do submitted work until none has come for a while; return a last piece of it undone."""
        thread = threading.current_thread()
        while True:
            try:
                name, last, work = self._work.get(timeout=_PATIENCE)
            except queue.Empty:
                with self._lock:
                    if self._free > 0:
                        self._free -= 1
                        return None
                continue  # work was submitted to this thread, and is about to be put into the queue
            thread.name = name
            if last:
                return work
            work()
            del work  # its closure may be large
            thread.name = _IDLE
            with self._lock:
                self._free += 1


def is_there(thread: threading.Thread) -> bool:
    """Return whether a thread still exists: Python calls it ended before libraries have freed their data of it."""
    number = thread.native_id  # None before it has run
    return number is None or thread.is_alive() or os.path.exists(f"/proc/self/task/{number}")
