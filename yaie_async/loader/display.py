"""Progress of loads without an `on_progress`: in a notebook, on a terminal, in the log, or as lines on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

from yaie_async.core.log import contained, logger
from yaie_async.core.progress import Meter, OnProgress, Progress, reporting
from yaie_async.core.threads import run_detached
from yaie_async.loader.streams import Unbreakable, is_terminal
from yaie_async.loader.text import describe

if TYPE_CHECKING:
    from yaie_async.loader.board import Board

LOG_INTERVAL = 5.0


@asynccontextmanager
async def watching(meter: Meter, on_progress: OnProgress | None) -> AsyncIterator[None]:
    """Report `meter` to `on_progress` during the block; without one, to a notebook, the terminal, the log or stderr.

    **Cancellation:** the row of the load says "stopped"; the last event is reported.

    **Raises:** what the block raises.
    """
    board = None if on_progress else await run_detached(_choose_board, name="display")
    try:
        with board.row(meter.model) if board else nullcontext(on_progress or LogLines()) as show:
            async with reporting(meter, show):
                yield
    finally:
        if board:
            await board.settle()


def _choose_board() -> Board | None:
    with contained():  # IPython may be anything
        if _bars_wanted() and _in_notebook():
            from yaie_async.loader.notebook import notebook  # here, off the loop: these import rich

            return notebook
        if _bars_wanted() and is_terminal(sys.stderr):
            from yaie_async.loader.table import table

            return table if table.has_room() else None
    return None


def _bars_wanted() -> bool:
    from huggingface_hub.utils import are_progress_bars_disabled

    return not are_progress_bars_disabled()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. Only then IPython is imported already, and has a kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class LogLines:
    """Logs a line when the stage changes, and every few seconds within a stage; on stderr without any logging."""

    def __init__(self) -> None:
        self._stage = ""
        self._next = 0.0
        self._begin = time.monotonic()

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        if event.stage == self._stage and now < self._next:
            return
        self._stage, self._next = event.stage, now + LOG_INTERVAL
        last = logging.lastResort
        if not (logger.hasHandlers() or logger.level > logging.INFO or (last and last.level <= logging.INFO)):
            if _bars_wanted():  # and no logging is configured, nor switched off
                Unbreakable(sys.stderr).write(f"{describe(event)}\n")
                Unbreakable(sys.stderr).flush()
            return
        facts = {
            "model": event.model,
            "stage": event.stage,
            "bytes": event.bytes_done,
            "bytes_total": event.bytes_total,
            "seconds": now - self._begin,
        }
        logger.info("%s", describe(event), extra=facts)
