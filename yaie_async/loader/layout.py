"""Rows of loads as lines for a width: first the bar goes, then the rate; then names are cut, but never a number."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from yaie_async.loader.text import Row

_GAP = "  "
_WIDEST = 500
_LONGEST_BAR = 24
_SHORTEST_BAR = _SHORTEST_NAME = _SHORTEST_NOTE = 8


def layout(rows: Sequence[Row], width: int) -> list[str]:
    """One line of at most `width` cells for each row.

    If names of 8 cells leave no room for the stage, it is shown only where a row waits or has no numbers.
    """
    stages, amounts, rates, lefts = ([getattr(row, of) for row in rows] for of in ("stage", "amount", "rate", "left"))
    longest = max((cell_len(row.name) for row in rows), default=0)

    def room() -> int:
        """Cells that the other columns leave to the name, and the bar."""
        return width - sum(len(_GAP) + _widest(column) for column in (stages, amounts, rates, lefts) if any(column))

    width = min(width, _WIDEST)
    bar = min(room() - longest - len(_GAP), _LONGEST_BAR)
    bar = bar if bar >= _SHORTEST_BAR and any(row.bar is not None for row in rows) else 0
    if room() < longest:
        rates = [""] * len(rows)
    if room() < min(longest, _SHORTEST_NAME):
        most = _widest(amounts)
        counting = [row.amount and row.stage in ("", "downloading") for row in rows]
        amounts = [row.amount if counts else row.stage.ljust(most) for row, counts in zip(rows, counting, strict=True)]
        stages = [""] * len(rows)
    name = max(min(longest, room()), 0)
    for row in rows:
        if row.note or row.attempt:  # the name yields to an attempt, and to a note where both have room
            rest = width - (_widest(stages) or len(row.stage)) - 2 * len(_GAP) - len(row.attempt)
            least = min(cell_len(row.note), _SHORTEST_NOTE) + len(_GAP) * bool(row.note and row.attempt)
            enough = rest - least >= min(name, _SHORTEST_NAME)
            name = max(min(name, rest - least if enough else rest), 0)
    lines = []
    for row, stage, amount, rate, left in zip(rows, stages, amounts, rates, lefts, strict=True):
        cells = [set_cell_size(cut(row.name, name), name), stage.ljust(_widest(stages))]
        if row.note or row.attempt:
            cells[1] = cells[1] or row.stage
            free = width - sum(cell_len(cell) + len(_GAP) for cell in (*cells, row.attempt) if cell)
            note = cut(row.note, free) if free >= _SHORTEST_NOTE else ""
            cells.append(", ".join(filter(None, (note, row.attempt))))
        else:
            cells.append(" " * bar if row.bar is None else _bar(row.bar, bar))
            cells += [cell.rjust(_widest(of)) for cell, of in ((amount, amounts), (rate, rates), (left, lefts))]
        lines.append(set_cell_size(_GAP.join(filter(None, cells)).rstrip(), width).rstrip())
    return lines


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, cut in the middle."""
    if cell_len(text) <= width:
        return text
    if width < 3:
        return set_cell_size(text, max(width, 0))
    tail = (width - 1) // 2
    return set_cell_size(text, width - 1 - tail) + "…" + set_cell_size(text[::-1], tail)[::-1]


def _widest(column: Sequence[str]) -> int:
    return max(map(len, column), default=0)


def _bar(share: float, width: int) -> str:
    done = int(max(0.0, min(share, 1.0)) * width)
    return "━" * done + "─" * (width - done)
