"""The loads as an output of a notebook's cell, which is updated in place."""

import sys
import time
from html import escape
from typing import Any

from yaie_async.loader.board import Board
from yaie_async.loader.layout import layout

_INTERVAL = 0.25  # seconds between updates within a stage: each is a message to the browser


class Notebook(Board):
    """Drawn by IPython, which is imported already where there is a notebook."""

    def renew(self) -> None:
        """Also begin a new output."""
        super().renew()
        self._handle: Any = None
        self._drawn: tuple[float, object] = 0.0, None

    def draw(self, *, last: bool) -> None:
        """Send the rows, unless that was done a moment ago and no load has got into another stage since."""
        stages = [(event.stage, end) for event, end in self._loads.values()]
        now = time.monotonic()
        if self._handle is None:
            self._handle = sys.modules["IPython"].display.display(self._bundle(), raw=True, display_id=True)
        elif last or stages != self._drawn[1] or now - self._drawn[0] >= _INTERVAL:
            self._handle.update(self._bundle(), raw=True)
        else:
            return
        self._drawn = now, stages
        if last:
            self._handle = None

    def _bundle(self) -> dict[str, str]:
        rows, html = self.rows(), ""
        for row in rows:
            bar = "" if row.bar is None else f'<progress value="{row.bar:.3f}"></progress>'
            note = escape(", ".join(filter(None, (row.note, row.attempt))))
            html += "<tr>"
            cells = escape(row.name), row.stage, bar or note, row.amount, row.rate, row.left
            for cell in cells:
                wrap = "normal" if cell is note else "nowrap"  # numbers are not broken
                html += f"<td style='text-align: left; white-space: {wrap}'>{cell}</td>"
            html += "</tr>"
        return {"text/html": f"<table>{html}</table>", "text/plain": "\n".join(layout(rows, 100))}


notebook: Notebook = Notebook()
"""All loads of a kernel are in one output."""
