"""A timeline of a process in Chrome's trace format, which Perfetto and chrome://tracing open.

One recording runs at a time. Without one, a span costs a microsecond.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Trace:
    """Spans on named tracks. `add` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = time.perf_counter_ns()
        self._tracks: dict[str, int] = {}
        self._events: list[dict[str, Any]] = []

    def add(self, track: str, name: str, start: int, stop: int, arguments: dict[str, Any]) -> None:
        """Add a span from `start` to `stop` (perf_counter_ns). Spans of one track may be nested, but not overlap."""
        microseconds = {"ts": (start - self._start) / 1000, "dur": (stop - start) / 1000}
        event = {"ph": "X", "name": name, "pid": os.getpid(), "args": arguments, **microseconds}
        with self._lock:
            self._events.append({**event, "tid": self._tracks.setdefault(track, len(self._tracks) + 1)})

    def document(self) -> dict[str, Any]:
        """The content of the trace file, to be written as JSON."""
        with self._lock:
            tracks = sorted(self._tracks.items())
            # Readers expect an outer span before those inside it.
            spans = sorted(self._events, key=lambda event: (event["ts"], -event["dur"]))
            names = [
                {"ph": "M", "name": kind, "pid": os.getpid(), "tid": thread, "args": {key: value}}
                for place, (track, thread) in enumerate(tracks)
                for kind, key, value in (("thread_name", "name", track), ("thread_sort_index", "sort_index", place))
            ]
            return {"displayTimeUnit": "ms", "traceEvents": [*names, *spans]}


_trace: Trace | None = None


@contextmanager
def recording() -> Iterator[Trace]:
    """Record all spans of this process that end during the block."""
    global _trace  # noqa: PLW0603 - one for all threads and loops, which need not pass it through every layer
    before, _trace = _trace, Trace()
    try:
        yield _trace
    finally:
        _trace = before


@contextmanager
def span(track: str, name: str, **arguments: Any) -> Iterator[None]:
    """Record the block, if a recording runs. The arguments must be JSON values."""
    trace = _trace
    if trace is None:
        yield
        return
    start = time.perf_counter_ns()
    try:
        yield
    finally:
        trace.add(track, name, start, time.perf_counter_ns(), arguments)
