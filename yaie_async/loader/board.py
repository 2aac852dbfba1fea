"""The loads of the process that one display shows: a row for each, and their total."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from yaie_async.core.log import contained, logger
from yaie_async.core.progress import OnProgress, Progress
from yaie_async.loader.text import Row, row_of, total

Loads = dict[object, tuple[Progress, str]]  # the last event of each, and how it ended if it did so early


class Board(ABC):
    """Shows all loads that run at the same time. An error while drawing is logged (DEBUG) and ends no load."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """Begin anew: a forked child has neither the loads of its parent nor their threads."""
        self._lock = threading.RLock()
        self._loads: Loads = {}  # another one for each picture: a thread may still draw the last
        self.running: int = 0

    @contextmanager
    def row(self, model: str) -> Iterator[OnProgress]:
        """Show a load during the block. Its row stays until the last load has ended."""
        key = object()

        def show(event: Progress, end: str = "") -> None:
            with self._lock:
                loads[key] = event, end
                if loads is self._loads:  # else this is a child, which was forked during the load
                    self._draw()

        with self._lock:
            loads = self._loads
            self.running += 1
            show(Progress(model, "resolving"))
        try:
            yield show
        except BaseException as error:
            show(loads[key][0], "failed" if isinstance(error, Exception) else "stopped")
            raise
        finally:
            with self._lock:
                self.running -= loads is self._loads
                if not self.running and loads is self._loads:
                    self._draw(last=True)
                    self._loads = {}

    async def settle(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Wait until the last picture is there, but not for long.

        **Cancellation:** waits no longer than without one.

        **Raises:** nothing.
        """

    def rows(self, room: int | None = None) -> list[Row]:
        """The rows of all loads, early ends last, or of `room` of them; and a row for their total."""
        return rows_of(self._loads, room)

    def _draw(self, *, last: bool = False) -> None:
        with contained(report):
            self.draw(last=last)

    @abstractmethod
    def draw(self, *, last: bool) -> None:
        """Show the rows, or see to it that they are shown soon. After the last time, the next is on a new display."""


def report(error: BaseException) -> None:
    """Log the error of a drawing, which ends no load."""
    logger.debug("The progress can't be shown. The load goes on.", exc_info=error)


def rows_of(of: Loads, room: int | None) -> list[Row]:
    """As `Board.rows`."""
    loads = shown = sorted(of.values(), key=lambda load: load[1] != "")
    if room is not None and len(loads) > room:
        # Loads that are under way first: the total covers the others.
        shown = sorted(loads, key=lambda load: load[1] != "" or load[0].stage == "ready")[: max(room, 1)]
    return [row_of(*load) for load in shown] + [total(loads)] * (len(loads) > 1)
