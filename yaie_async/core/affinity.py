"""One core is left to the event loop while another thread imports, or builds out of what lands.

A late beat of the loop beside an import and a download mostly had no GIL to wait for, but a core: the importing thread
and those that read bodies are on every core in turn, and a kernel without full preemption takes no core from a thread
inside a system call. With all of them kept off one core, the 99th percentile of a heartbeat during the imports fell
from 7 to 3 ms on two cores. Over 1 Gbit/s nothing took longer; over 2 and 10, where readers want most of a core, the
imports beside them did, by a fifth, and the model was ready 0-5 % later. Keeping only the importing thread off the
core, or only the readers, changed nothing, nor did shorter slices for the loop's thread, longer ones or SCHED_BATCH for
the others. In a build of what lands over 1 Gbit/s, where nothing is cast, the percentile fell from 3.7 to 2.4 ms.

A lower priority for those threads (nice, SCHED_IDLE) does the same on an idle machine. On one that is busy, the loop
waits for the GIL while the thread that has it waits for a core behind everybody else: a load of 5 s took 32.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Cores:
    """Which cores some threads of this process run on. The others, the loop's own among them, are never touched."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cores_before: dict[int, set[int]] = {}  # by thread; empty for one that may use all it ever could
        self._users = 0

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """Around work of the calling thread: it leaves a core free for as long as anybody wants that."""
        thread = threading.get_native_id()
        with self._lock:
            gives_way = thread in self._cores_before
            if not gives_way:
                self._cores_before[thread] = set()
                if self._users:
                    self._confine(thread)
        if gives_way:  # and will after this work
            yield
            return
        try:
            yield
        finally:
            with self._lock:  # so that no number is used that may be another thread's by now
                self._release(thread)
                del self._cores_before[thread]

    @contextmanager
    def one_left_free(self) -> Iterator[None]:
        """Have the calling thread and all that give way off one core, of those that each was given."""
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
        """Let the calling thread use all its cores for a moment: who counts them now does so for good."""
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
        # A platform may lack the call, a sandbox may refuse it, and then all is as it was.
        with suppress(AttributeError, OSError):
            cores = os.sched_getaffinity(thread)
            # Processes that load at the same time each leave another one.
            free = sorted(cores)[os.getpid() % len(cores)]
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
