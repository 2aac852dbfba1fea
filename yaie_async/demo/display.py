"""The demo's live display on stderr: the bar of the load, with the longest stall beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from yaie_async.core.progress import OnProgress, Progress
from yaie_async.demo.heartbeat import Pulse
from yaie_async.loader.display import LogLines


@contextmanager
def live(pulse: Pulse) -> Iterator[OnProgress]:
    """Show a load while the block runs: on a terminal a bar that moves, elsewhere a log line now and then."""
    if not sys.stderr.isatty():
        yield LogLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, SpinnerColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        SpinnerColumn(),
        TextColumn("[cyan]{task.fields[stage]}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("longest stall [bold]{task.fields[stall]:.0f} ms"),
        console=Console(stderr=True),
    )
    with bars:
        task = bars.add_task("", total=None, stage="resolving", stall=0.0)

        def show(event: Progress) -> None:
            bars.update(
                task,
                total=event.bytes_total or None,
                completed=event.bytes_done,
                stage=event.stage,
                stall=pulse.longest * 1000,
            )

        yield show
