"""The table of loads on a terminal, which rich draws."""

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from yaie_async.loader.board import Board
from yaie_async.loader.layout import layout
from yaie_async.loader.streams import Unbreakable, is_terminal

_ASCII = str.maketrans("━─…", "=-~")


class Table(Board):
    """Drawn by a thread of rich's, below what the application prints meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None
        self._streams: tuple[Any, Any] = None, None

    def has_room(self) -> bool:
        """Whether the terminal can move its cursor and shows no display of the application's by rich."""
        others = any(isinstance(stream, FileProxy) for stream in (sys.stdout, sys.stderr))
        return self.running > 0 or (Console(stderr=True).is_interactive and not others)

    def draw(self, *, last: bool) -> None:
        """Start the thread, or end it."""
        if self._live is None and not last:
            stream: Any = Unbreakable(sys.stderr)  # rich ends the process for a broken pipe
            # What is printed to a stdout that is a file or a pipe must get there: rich would print it on the terminal.
            stdout = is_terminal(sys.stdout)
            self._live = Live(self, console=Console(file=stream), refresh_per_second=8, redirect_stdout=stdout)
            self._live.start()
            self._streams = sys.stdout, sys.stderr
        elif self._live is not None and last:
            live, self._live = self._live, None
            streams = sys.stdout, sys.stderr
            live.stop()
            # rich puts back the streams of the start, even where the application has replaced them since.
            if streams != self._streams:
                sys.stdout, sys.stderr = streams

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Render the rows. rich calls it in its thread."""
        for line in layout(self.rows((options.max_height or console.height) - 2), options.max_width):
            text = Text(line.translate(_ASCII) if options.ascii_only else line, no_wrap=True, overflow="crop")
            text.highlight_regex("━+|=+", "bar.complete")
            text.highlight_regex("─+|--+", "bar.back")
            yield text


table: Table = Table()
"""A terminal has room for one."""
