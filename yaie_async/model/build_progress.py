"""How far the build of a model is, and how long the rest of it takes by the last one of its kind on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from yaie_async.model.estimate import cast_bytes
from yaie_async.store.history import Took, last_time, remember

if TYPE_CHECKING:
    from yaie_async.model.request import BuildRequest

T = TypeVar("T")


class BuildProgress:
    """Counts what is placed: the bytes of tensors in a streaming build, in transformers' own their number.

    `expect`, `add` and the share itself may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._began = 0.0
        self._last: float | None = None  # seconds of the last build, as long as this one is large

    def __call__(self) -> tuple[float | None, float | None]:
        """The share that is placed, and the seconds left; None for what is not known."""
        done, total, last = self._done, self._total, self._last  # read once: the builder's thread changes them
        share = min(1.0, done / total) if total else None
        if last is None:
            return share, None
        left = last * (1 - share) if share else last - (time.monotonic() - self._began)
        return share, left if left >= 0 else None

    @contextmanager
    def measured(self, request: BuildRequest, *, keep: bool) -> Iterator[None]:
        """Measure the build in the block, and `keep` its time for the next one if it succeeds."""
        import torch

        found = "gpu" if _devices(request) != ["cpu"] and torch.cuda.is_available() else "cpu"
        size, what = request.manifest.size, _kind(request, found)
        self._last = last_build(request, found)
        self._done = self._total = 0
        self._began = time.monotonic()
        yield
        if keep and size:
            remember(what, Took(time.monotonic() - self._began, size))

    def expect(self, total: int) -> None:
        self._total = total

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count

    def counted(self, items: Iterable[T]) -> Iterator[T]:
        """The items of a progress bar, counted as they are done."""
        self._total = len(items) if isinstance(items, Sized) else 0
        for item in items:
            yield item
            self.add(1)


def last_build(request: BuildRequest, *found: str) -> float | None:
    """Seconds of the last build of its kind, as long as this one is large; None unless just one of `found` has it."""
    took = [one for what in found if (one := last_time(_kind(request, what)))]
    return took[0].seconds * request.manifest.size / took[0].count if len(took) == 1 else None


def _kind(request: BuildRequest, found: str) -> str:
    """What builds of about the same duration have in common; by powers of two, as a part of it is the same for all."""
    manifest = request.manifest
    kind = "cast" if cast_bytes(manifest.size, request.dtype, manifest.stored) else "mapped"
    return f"build {kind} {','.join(_devices(request))[:40]} {found} {manifest.size.bit_length()}"


def _devices(request: BuildRequest) -> list[str]:
    return sorted({str(device).partition(":")[0] for device in request.devices})
