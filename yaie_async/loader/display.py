"""Progress of loads without an `on_progress`: a table on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from yaie_async.core.log import logger
from yaie_async.core.progress import Meter, OnProgress, Progress, reporting
from yaie_async.core.threads import run_detached

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.live import Live
    from rich.table import Table

LOG_INTERVAL = 5.0

_ENDS = "failed", "stopped"


@asynccontextmanager
async def watching(meter: Meter, on_progress: OnProgress | None) -> AsyncIterator[None]:
    """Report `meter` to `on_progress` during the block; without one, to the terminal or the log.

    **Cancellation:** the row of the load says "stopped"; the last event is reported.

    **Raises:** what the block raises.
    """
    if on_progress is not None:
        async with reporting(meter, on_progress):
            yield
    elif not await run_detached(_bars_wanted, name="display"):
        async with reporting(meter, LogLines()):
            yield
    else:
        with _table.row(meter.model) as row:
            async with reporting(meter, row):
                yield


def _bars_wanted() -> bool:
    from huggingface_hub.utils import are_progress_bars_disabled

    terminal = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    if not terminal or are_progress_bars_disabled():
        return False
    import rich.live  # here, off the loop
    import rich.progress_bar
    import rich.table  # noqa: F401

    return True


class LogLines:
    """Logs a line when the stage changes, and every few seconds within a stage."""

    def __init__(self) -> None:
        self._stage = ""
        self._next = 0.0
        self._begin = time.monotonic()

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        if event.stage == self._stage and now < self._next:
            return
        self._stage, self._next = event.stage, now + LOG_INTERVAL
        facts = {
            "model": event.model,
            "stage": event.stage,
            "bytes": event.bytes_done,
            "bytes_total": event.bytes_total,
            "seconds": now - self._begin,
        }
        logger.info("%s", describe(event), extra=facts)


def describe(event: Progress) -> str:
    """One line of text for an event."""
    text = f"{event.model}: {stage_text(event)}"
    if event.bytes_total and event.stage in ("downloading", "verifying"):
        text += " " + ", ".join(filter(None, amounts(event)))
    if event.stage in ("importing", "building"):
        share = "" if event.stage_fraction is None else f"{event.stage_fraction:.0%}"
        text += " " + ", ".join(filter(None, (share, amounts(event)[2])))
    if event.stage == "stalled":
        when = "" if event.retry_in is None else f" in {event.retry_in:.0f} s"
        text += f": {event.reason}, attempt {event.attempt}{when}"
    return text.rstrip()


def stage_text(event: Progress) -> str:
    """The stage as people read it."""
    return "waiting for another process" if event.stage == "waiting" else event.stage


def size(count: float) -> str:
    """Bytes in decimal units, as disks and networks have them: "3 B", "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


class _Table:
    """The table of all loads of the process, a row for each and their total. A terminal has room for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._users = 0
        self._rows: dict[object, tuple[Progress, str]] = {}  # the last event, and how the load ended if it did so early

    @contextmanager
    def row(self, model: str) -> Iterator[OnProgress]:
        """Show a load during the block. Its row stays until the last load has ended."""
        key = object()

        def show(event: Progress) -> None:
            self._rows[key] = event, ""

        show(Progress(model, "resolving"))
        with self._lock:
            self._users += 1
            if self._live is None:
                from rich.console import Console
                from rich.live import Live

                self._live = Live(self, console=Console(stderr=True), refresh_per_second=8)
                self._live.start()
        try:
            yield show
        except BaseException as error:
            self._rows[key] = self._rows[key][0], "failed" if isinstance(error, Exception) else "stopped"
            raise
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._live.stop()
                    self._live = None
                    self._rows.clear()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Render the rows. rich calls it in the thread that refreshes the terminal."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        # A load that has failed keeps its row, as one of the last, but is not part of the total: no more bytes come.
        shown = sorted(self._rows.values(), key=lambda row: row[1] != "")
        rows = [(e.model, end or stage_text(e), Progress("", "resolving") if end else e) for e, end in shown]
        room = (options.max_height or console.height) - 2
        if len(rows) > room:
            # Loads that are under way first: the total covers the others.
            rows = sorted(rows, key=lambda row: row[1] in ("ready", *_ENDS))[:room]
        if len(shown) > 1:
            rows.append((f"{len(shown)} models", "", total([event for event, end in shown if not end])))
        table = Table.grid(padding=(0, 1))
        for text in ("left", "left", "left", "right", "right", "right"):
            table.add_column(justify=text, no_wrap=True)
        for name, stage, event in rows:
            bar = ProgressBar(event.bytes_total or None, event.bytes_done, width=24, pulse=not event.bytes_total)
            table.add_row(name, stage, "" if stage in _ENDS else bar, *amounts(event))
        yield table


def total(events: Sequence[Progress]) -> Progress:
    """The sum of all loads: bytes, files and rates."""
    rate = sum(event.bytes_per_second for event in events)
    left = sum(event.bytes_total - event.bytes_done for event in events)
    return Progress(
        "",
        "ready" if all(event.stage == "ready" for event in events) else "downloading",
        sum(event.bytes_done for event in events),
        sum(event.bytes_total for event in events),
        rate,
        left / rate if rate else None,
        sum(event.files_done for event in events),
        sum(event.files_total for event in events),
    )


def amounts(event: Progress) -> tuple[str, str, str]:
    """Bytes, rate and time left, each empty where it is unknown."""
    return (
        f"{size(event.bytes_done)} of {size(event.bytes_total)}" if event.bytes_total else "",
        f"{size(event.bytes_per_second)}/s" if event.bytes_per_second else "",
        "" if event.seconds_left is None else f"{event.seconds_left:.0f} s left",
    )


_table = _Table()
