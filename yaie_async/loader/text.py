"""An event of a load as text: one line for a log, or the cells of a table's row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from yaie_async.core.errors import printable
from yaie_async.core.progress import Progress


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of a load; empty where there is nothing to show."""

    name: str
    stage: str
    note: str = ""  # what the load waits for
    attempt: str = ""  # the end of the note, which is not cut
    bar: float | None = None  # share that is done, 0.0 to 1.0
    amount: str = ""
    rate: str = ""
    left: str = ""


def row_of(event: Progress, end: str = "") -> Row:
    """The cells of a load. `end` says how it ended, if it did so early ("failed", "stopped")."""
    amount = f"{size(event.bytes_done)} of {size(event.bytes_total)}" if event.bytes_total else ""
    row = Row(printable(event.model), end or event.stage, amount="" if end == "failed" else amount)
    if end:
        return row
    if event.stage == "waiting":
        return replace(row, note="for another process")
    if event.stage == "stalled":
        when = "" if event.retry_in is None else f" in {duration(event.retry_in)}"
        attempt = f"attempt {event.attempt}{when}" if event.attempt else ""
        return replace(row, note=printable(event.reason), attempt=attempt)
    bar = event.fraction if event.bytes_total else None
    return replace(
        row,
        bar=event.stage_fraction if event.stage in ("importing", "building") else bar,
        rate=f"{size(event.bytes_per_second)}/s" if event.bytes_per_second else "",
        left="" if event.seconds_left is None else f"{duration(event.seconds_left)} left",
    )


def total(loads: Sequence[tuple[Progress, str]]) -> Row:
    """The sum of all loads and their ends. A load that has failed counts no bytes: no more of them come."""
    counted = [event for event, end in loads if end != "failed"]
    running = [event for event, end in loads if not end and event.stage != "ready"]
    done, everything = sum(event.bytes_done for event in counted), sum(event.bytes_total for event in counted)
    rate = sum(event.bytes_per_second for event in running)
    lefts = [event.seconds_left for event in running if event.seconds_left is not None]
    if rate:
        lefts.append(sum(event.bytes_total - event.bytes_done for event in running) / rate)
    # Unknown while one doesn't know its files; else the longest, because loads run at the same time.
    known = all(event.bytes_total or event.stage in ("importing", "building") for event in running)
    left = max(lefts, default=None) if known else None
    row = row_of(Progress(f"{len(loads)} models", "downloading", done, everything, rate, left))
    return replace(row, stage="", bar=None if running and done >= everything else row.bar)


def describe(event: Progress) -> str:
    """One line of text for an event."""
    row = row_of(event)
    if event.stage == "waiting":
        return f"{row.name}: waiting {row.note}"
    facts: list[str] = []
    if event.stage in ("downloading", "verifying"):
        facts = [row.amount, row.rate, row.left]
    elif event.stage in ("importing", "building"):
        facts = ["" if row.bar is None else f"{row.bar:.0%}", row.left]
    elif event.stage == "stalled":
        facts = [row.note, row.attempt]
    return f"{row.name}: {event.stage} {', '.join(filter(None, facts))}".rstrip()


def size(count: float) -> str:
    """Bytes in decimal units, as disks and networks have them: "3 B", "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < (999.5 if unit == "B" else 999.95) or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds in at most six characters: "5 s", "4m23s", "7h47m", "99 d"."""
    whole = round(min(seconds, 99 * 86400))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m" if whole < 86400 else f"{whole // 86400} d"
