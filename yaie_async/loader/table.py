"""The table of loads on a terminal, which rich draws."""

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import anyio
from rich.console import Console, ConsoleOptions
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from yaie_async.core.log import contained
from yaie_async.loader.board import Board, Loads, report, rows_of
from yaie_async.loader.layout import layout
from yaie_async.loader.streams import Unbreakable, is_terminal

_ASCII = str.maketrans("━─…", "=-~")
_REFRESH = 0.125  # seconds
_PATIENCE = 0.25  # seconds for the last picture, which takes a few milliseconds unless the terminal is stopped (Ctrl-S)


class Table(Board):
    """Drawn by a thread of its own, which a terminal may stop, below what the application prints meanwhile."""

    def __init__(self) -> None:
        self._picture: _Picture | None = None
        super().__init__()

    def renew(self) -> None:
        """Also put the streams back."""
        super().renew()
        picture, self._picture = self._picture, None
        self._thread: threading.Thread | None = None  # of the last picture
        if picture is not None:
            picture.restore()

    def has_room(self) -> bool:
        """Whether the terminal can move its cursor and shows no display of the application's by rich."""
        others = any(isinstance(stream, FileProxy) for stream in (sys.stdout, sys.stderr))
        return self.running > 0 or (Console(stderr=True).is_interactive and not others)

    def draw(self, *, last: bool) -> None:
        """Start the thread, or have it end."""
        if self._picture is None and not last:
            self._picture = _Picture(self._loads, self._thread)
            self._thread = threading.Thread(target=self._picture.show, name="yaie-table", daemon=True)
            self._thread.start()
        elif self._picture is not None and last:
            picture, self._picture = self._picture, None
            picture.end()

    async def settle(self) -> None:
        """Wait until the last picture is there. A thread that the terminal has stopped is left behind.

        **Cancellation:** as `Board.settle`.

        **Raises:** nothing.
        """
        with anyio.move_on_after(_PATIENCE, shield=True):
            while not self.running and self._thread and self._thread.is_alive():  # noqa: ASYNC110 - a thread sets no Event
                await anyio.sleep(0.002)


class _Picture:
    """The table from the first of some loads to the end of the last."""

    def __init__(self, loads: Loads, before: threading.Thread | None) -> None:
        self._loads = loads
        self._before = before
        self._ended = threading.Event()
        stderr: Any = Unbreakable(sys.stderr)  # rich ends the process for a broken pipe
        self._stderr = stderr
        self._console = Console(file=stderr)
        # What is printed to a stdout that is a file or a pipe must get there.
        names = ("stdout", "stderr") if is_terminal(sys.stdout) else ("stderr",)
        # Not by rich, which puts back the streams of the start, even where the application has replaced them since.
        self._streams = [(name, stream := getattr(sys, name), FileProxy(self._console, stream)) for name in names]
        for name, _, proxy in self._streams:
            setattr(sys, name, proxy)

    def restore(self) -> None:
        """Put the streams back."""
        for name, stream, proxy in self._streams:
            if getattr(sys, name) is proxy:
                setattr(sys, name, stream)

    def end(self) -> None:
        """Put the streams back, and have `show` draw the last picture."""
        self.restore()
        self._ended.set()

    def show(self) -> None:
        """Draw the picture until its end."""
        if self._before is not None:
            self._before.join()
        console = self._console
        encoding = getattr(self._stderr, "encoding", None) or "utf-8"
        # Not stderr itself: a thread that is stopped in its write would hold its lock when the process ends.
        with (
            contained(report),
            os.fdopen(os.dup(self._stderr.fileno()), "w", encoding=encoding, errors="replace") as own,
        ):
            file: Any = Unbreakable(own)
            console.file = file
            with Live(self, console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
                while not self._ended.wait(_REFRESH):
                    live.refresh()
        console.file = self._stderr  # the application may have kept a stream of `_streams`

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Render the rows. rich calls it in the thread."""
        for line in layout(rows_of(self._loads, (options.max_height or console.height) - 2), options.max_width):
            text = Text(line.translate(_ASCII) if options.ascii_only else line, no_wrap=True, overflow="crop")
            text.highlight_regex("━+|=+", "bar.complete")
            text.highlight_regex("─+|--+", "bar.back")
            yield text


table: Table = Table()
"""A terminal has room for one."""
