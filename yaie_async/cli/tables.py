"""Text lines and tables of a result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text


def field_lines(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line per row: the name on the left, the value on the right."""
    return [f"{name:<20}{value}" for name, value in rows]


def table(*headers: str, rows: Iterable[tuple[str, ...]]) -> Table:
    """Return a table. The first and the last column hold text, the others numbers.

    Where room is short the first is cut in the middle, so that a row with a short last cell stays one line.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for number, header in enumerate(headers):
        numeric = 0 < number < len(headers) - 1
        found.add_column(header, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for first, *others in rows:
        found.add_row(_Name(first), *map(Text, others))
    return found


@dataclass(frozen=True)
class _Name:
    """A cell that is cut in the middle."""

    text: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(8, len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        from yaie_async.loader.layout import cut

        yield Text(cut(self.text, options.max_width))
