"""The demo's bars on stderr: one while its model is made, one for the load with the longest stall beside it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from yaie_async.core.progress import OnProgress, Progress
from yaie_async.demo.heartbeat import Pulse
from yaie_async.loader.display import LogLines
from yaie_async.loader.streams import is_terminal


@contextmanager
def live(pulse: Pulse) -> Iterator[OnProgress]:
    """Show a load while the block runs: on a terminal a bar that moves, elsewhere a log line now and then."""
    if not is_terminal(sys.stderr):
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


@contextmanager
def step_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show the steps of making a model while the block runs: on a terminal as a bar, elsewhere not at all.

    The block gets a function that takes a step's name, how much of it is done, and of how much if that is known.
    """
    if not is_terminal(sys.stderr):
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        SpinnerColumn(),
        TextColumn("[cyan]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bars:
        task = bars.add_task("Starting", total=None, count="")

        def show(name: str, done: int, total: int | None) -> None:
            count = f"{done}/{total}" if total else ""
            # Drawn at once: the next step may come before the next of the ten refreshes a second.
            bars.update(task, description=name, completed=done, total=total, count=count, refresh=True)

        yield show
        show("Done", 1, 1)
