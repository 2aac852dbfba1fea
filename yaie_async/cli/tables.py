"""Text lines and tables of a result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def field_lines(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line per row: the name on the left, the value on the right."""
    return [f"{name:<20}{value}" for name, value in rows]


def table(*headers: str, rows: Iterable[tuple[str, ...]]) -> Table:
    """Return a table. The first and the last column hold text, the others numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0))
    for number, header in enumerate(headers):
        numeric = 0 < number < len(headers) - 1
        found.add_column(header, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        found.add_row(*map(Text, row))
    return found
