"""What a person sees when nobody gave an `on_progress`: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from yaie_async.core.progress import Meter, OnProgress, Progress, reporting
from yaie_async.core.threads import run_detached

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

logger = logging.getLogger("yaie_async")

LOG_INTERVAL = 5.0


@asynccontextmanager
async def watching(meter: Meter, on_progress: OnProgress | None) -> AsyncIterator[None]:
    """Report `meter` to `on_progress` during the block; without one, to the terminal or the log."""
    if on_progress is not None:
        async with reporting(meter, on_progress):
            yield
    elif not await run_detached(_bars_wanted, name="display"):
        async with reporting(meter, LogLines()):
            yield
    else:
        with _bars.joined(meter.model) as sink:
            async with reporting(meter, sink):
                yield


def _bars_wanted() -> bool:
    from huggingface_hub.utils import are_progress_bars_disabled

    terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    if not terminal or are_progress_bars_disabled():
        return False
    import rich.progress  # noqa: F401 - here, off the loop

    return True


class LogLines:
    """Writes a line to the log when the stage changes, and every few seconds within one."""

    def __init__(self) -> None:
        self._stage = ""
        self._next = 0.0

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        if event.stage == self._stage and now < self._next:
            return
        self._stage, self._next = event.stage, now + LOG_INTERVAL
        logger.info("%s", describe(event))


def describe(event: Progress) -> str:
    """One line of text for an event."""
    text = f"{event.model}: {event.stage}"
    if event.bytes_total and event.stage in ("downloading", "verifying"):
        text += f" {size(event.bytes_done)} of {size(event.bytes_total)}"
        if event.bytes_per_second:
            text += f", {size(event.bytes_per_second)}/s"
        if event.seconds_left is not None:
            text += f", {event.seconds_left:.0f} s left"
    return text


def size(count: float) -> str:
    """Bytes for a person: "3 B", "1.2 MB", decimal units as disks and networks have them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


class _Bars:
    """One set of bars for all loads of the process: the terminal has only one bottom."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: RichProgress | None = None
        self._users = 0

    def joined(self, model: str) -> _Bar:
        with self._lock:
            if self._shown is None:
                self._shown = self._make()
                self._shown.start()
            self._users += 1
            return _Bar(self, self._shown, self._shown.add_task(model, total=None, stage="resolving"))

    def left(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._shown is not None:
                self._shown.stop()
                self._shown = None

    @staticmethod
    def _make() -> RichProgress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        return Progress(
            TextColumn("{task.description}"),
            TextColumn("[cyan]{task.fields[stage]}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )


class _Bar:
    """One load's bar."""

    def __init__(self, bars: _Bars, shown: RichProgress, task: TaskID) -> None:
        self._bars = bars
        self._shown = shown
        self._task = task

    def __enter__(self) -> OnProgress:
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bars.left()

    def _show(self, event: Progress) -> None:
        self._shown.update(
            self._task,
            total=event.bytes_total or None,
            completed=event.bytes_done,
            stage=event.stage,
        )


_bars = _Bars()
