"""Keep one CPU core free for the event loop while another thread imports or builds from a running download.

Beside an import and a download, a late heartbeat of the loop mostly waited for a core, not for the GIL. The importing
thread and the threads that read bodies use all cores in turn, and a kernel without full preemption takes no core from
a thread inside a system call. benchmarks/README.md has what this brings, what it costs, and what else was tried.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Cores:
    """The cores that some threads of this process may run on. Other threads, such as the loop's, are not changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cores_before: dict[int, set[int]] = {}  # by thread id; empty for a thread that is not confined now
        self._users = 0

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """During the block, keep the calling thread off one core whenever `one_left_free` asks for that."""
        thread = threading.get_native_id()
        with self._lock:
            nested = thread in self._cores_before
            if not nested:
                self._cores_before[thread] = set()
                if self._users:
                    self._confine(thread)
        try:
            yield
        finally:
            if not nested:
                with self._lock:  # no other thread uses this id afterwards, when it may be a new thread's
                    self._release(thread)
                    del self._cores_before[thread]

    @contextmanager
    def one_left_free(self) -> Iterator[None]:
        """Keep the calling thread, and all that are giving way, off one of their cores during the block."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                for thread in self._cores_before:
                    self._confine(thread)
        try:
            with self.giving_way():
                yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    for thread in self._cores_before:
                        self._release(thread)

    @contextmanager
    def all_seen(self) -> Iterator[None]:
        """Let the calling thread use all its cores during the block, for a library that counts them only once."""
        thread = threading.get_native_id()
        with self._lock:
            released = self._release(thread)
        try:
            yield
        finally:
            with self._lock:
                if released and self._users:
                    self._confine(thread)

    def _confine(self, thread: int) -> None:
        # Where the platform has no affinity, or a sandbox refuses the call, the thread keeps its cores.
        with suppress(AttributeError, OSError):
            cores = os.sched_getaffinity(thread)
            free = sorted(cores)[os.getpid() % len(cores)]  # another core for each of several loading processes
            if len(cores) > 1:
                os.sched_setaffinity(thread, cores - {free})
                self._cores_before[thread] = cores

    def _release(self, thread: int) -> bool:
        cores = self._cores_before.get(thread)
        if not cores:
            return False
        self._cores_before[thread] = set()
        with suppress(OSError):
            os.sched_setaffinity(thread, cores)
        return True
