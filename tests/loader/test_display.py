"""Tests of the display without `on_progress`: log lines and the table. The bar on a terminal is tested in
test_environment.py."""

import io
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from tests.loader.conftest import Put
from tests.support.faults import Drip
from tests.support.hub import HubServer
from yaie_async import Hub, ModelLoader, Progress
from yaie_async.loader import display
from yaie_async.loader.display import LogLines, describe, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (2_200_000_000, "2.2 GB"),
        (10**13, "10000.0 GB"),
    ],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    """Sizes have decimal units, as for disks and networks."""
    assert size(count) == text


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Progress("m", "resolving"), "m: resolving"),
        (Progress("m", "downloading"), "m: downloading"),
        (Progress("m", "downloading", 500, 2000), "m: downloading 500 B of 2.0 kB"),
        (
            Progress("m", "downloading", 500, 2000, bytes_per_second=300.0, seconds_left=5.4),
            "m: downloading 500 B of 2.0 kB, 300 B/s, 5 s left",
        ),
        (Progress("m", "waiting", 500, 2000), "m: waiting for another process"),
        (
            Progress("m", "stalled", 500, 2000, reason="HTTP 503 from cdn", attempt=3, retry_in=4.6),
            "m: stalled: HTTP 503 from cdn, attempt 3 in 5 s",
        ),
        (
            Progress("m", "stalled", 500, 2000, reason="no byte for 4 s", attempt=1),
            "m: stalled: no byte for 4 s, attempt 1",
        ),
        (Progress("m", "building", 2000, 2000), "m: building"),
        (Progress("m", "importing", 2000, 2000, stage_fraction=0.25, seconds_left=5.4), "m: importing 25%, 5 s left"),
        (Progress("m", "ready", 2000, 2000), "m: ready"),
    ],
)
def test_a_line_tells_what_is_known(event: Progress, text: str) -> None:
    """A line has the model and the stage, and during the download bytes, rate and time left."""
    assert describe(event) == text


def test_a_line_a_stage_and_one_every_few_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage is logged at once, and a long one again every five seconds."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines = LogLines()
    with caplog.at_level(logging.INFO, "yaie_async"):
        lines(Progress("m", "resolving"))
        for step in range(121):
            now = 100.0 + step / 10
            lines(Progress("m", "downloading", step, 120))
        lines(Progress("m", "ready"))
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "m: resolving",
        *(f"m: downloading {done} B of 120 B" for done in (0, 50, 100)),
        "m: ready",
    ]


def fetch(hub: HubServer, cache: Path) -> None:
    anyio.run(ModelLoader("org/big", endpoint=hub.url, cache_dir=cache).prefetch)


def test_without_a_terminal_a_load_is_logged(
    hub: HubServer, put_fake: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal the first and last stage and the size are logged, and nothing is written to the streams."""
    put_fake("org/big", 1 << 20)
    hub.faults.add(Drip(4 << 20), path="^/cdn/")
    with caplog.at_level(logging.INFO, "yaie_async"):
        fetch(hub, tmp_path)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "org/big: resolving"
    assert told[1].startswith("org/big: downloading")
    assert " of 1.0 MB" in told[1]
    assert told[-1] == "org/big: ready"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stream", [None, "closed"])
def test_without_a_stream_for_errors(
    stream: str | None, hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon with closed or missing streams can load."""
    put_fake("org/big", 1000)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed if stream else None)
    fetch(hub, tmp_path)


def test_the_hub_s_own_callback(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Hub.prefetch calls `on_progress` for each model, with its first and its last event."""
    put_fake("org/big", 1000)
    put_fake("org/two", 1000)
    events: list[Progress] = []

    async def main() -> None:
        async with Hub(endpoint=hub.url, cache_dir=tmp_path, on_progress=events.append) as one:
            await one.prefetch("org/big", "org/two", "org/big")

    anyio.run(main)
    for model in ("org/big", "org/two"):
        stages = [event.stage for event in events if event.model == model]
        assert (stages[0], stages[-1]) == ("resolving", "ready")
        assert stages.count("ready") == 1


def render(rows: dict[object, Progress], *, height: int = 24, ended: Mapping[object, str] | None = None) -> list[str]:
    from rich.console import Console

    table = display._Table()
    table._rows.update({key: (event, (ended or {}).get(key, "")) for key, event in rows.items()})
    console = Console(file=io.StringIO(), width=100, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()


def test_the_table_has_a_row_a_model_and_a_total() -> None:
    """Each row has stage, bytes, rate and time left of its model's events, and the last row has the totals."""
    rows: dict[object, Progress] = {
        1: Progress("org/a", "downloading", 500_000, 2_000_000, 300_000.0, 5.0),
        2: Progress("org/b", "downloading", 0, 4_000_000, 200_000.0, 20.0),
        3: Progress("org/c", "resolving"),
    }
    shown = [" ".join(line.replace("━", "").replace("╸", "").split()) for line in render(rows)]
    assert shown == [
        "org/a downloading 500.0 kB of 2.0 MB 300.0 kB/s 5 s left",
        "org/b downloading 0 B of 4.0 MB 200.0 kB/s 20 s left",
        "org/c resolving",
        "3 models 500.0 kB of 6.0 MB 500.0 kB/s 11 s left",
    ]
    assert len(render({1: rows[1]})) == 1
    shown = [" ".join(line.replace("━", "").replace("╸", "").split()) for line in render(rows, ended={2: "failed"})]
    assert shown[2:] == ["org/b failed", "3 models 500.0 kB of 2.0 MB 300.0 kB/s 5 s left"]


@pytest.mark.parametrize(("error", "word"), [(OSError, "failed"), (KeyboardInterrupt, "stopped")])
def test_a_row_that_ends_early(error: type[BaseException], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Failed and stopped models stay in the table until the last load has ended."""
    table = display._Table()
    with table.row("other"):
        with pytest.raises(error), table.row("org/a"):
            raise error
        assert [(event.model, end) for event, end in table._rows.values() if end] == [("org/a", word)]
    assert f"org/a {word}" in " ".join(capsys.readouterr().err.split())
    assert not table._rows


def test_a_table_that_is_higher_than_the_terminal() -> None:
    """In a table higher than the terminal, rows of ready models are dropped and the total stays."""
    rows: dict[object, Progress] = {
        number: Progress(f"m{number}", "ready" if number < 30 else "downloading", 1, 1) for number in range(40)
    }
    shown = [line.split()[0] for line in render(rows, height=12)]
    assert shown == [*(f"m{number}" for number in range(30, 40)), "40"]
