"""Tests of the display without `on_progress`: log lines, lines on stderr and the table on a terminal."""

import asyncio
import io
import logging
import os
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import anyio
import pytest

from tests.loader.conftest import Put
from tests.support.faults import Drip, Stall
from tests.support.hub import HubServer
from tests.support.terminal import Terminal, open_terminal
from tests.support.waiting import until, wait_until
from yaie_async import Hub, ModelLoader, Progress
from yaie_async.loader.board import Board
from yaie_async.loader.display import LogLines
from yaie_async.loader.text import describe, row_of, size, total


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (999_960_000, "1.0 GB"),
        (999.7, "1.0 kB"),
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
        (Progress("m", "importing", 5, 5, stage_fraction=0.4, seconds_left=3.2), "m: importing 40%, 3 s left"),
        (Progress("m", "building", 2000, 2000), "m: building"),
        (
            Progress("m", "stalled", 5, 10, reason="refused", attempt=3, retry_in=4.4),
            "m: stalled refused, attempt 3 in 4 s",
        ),
        (Progress("m", "stalled", 5, 10, reason="refused", attempt=3), "m: stalled refused, attempt 3"),
        (Progress("m", "stalled"), "m: stalled"),
        (Progress("m\x1b[2J\n", "resolving"), "m [2J : resolving"),
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


@contextmanager
def no_logging() -> Iterator[None]:
    """Take the handlers of pytest away, as in a script that has not configured logging."""
    before, logging.root.handlers = logging.root.handlers, []
    try:
        yield
    finally:
        logging.root.handlers = before


def test_lines_on_stderr_where_logging_is_not_configured(
    hub: HubServer, put_fake: Put, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal and a handler the lines go to stderr, unless bars are off or a level drops them."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    put_fake("org/big", 1000)
    with no_logging():
        fetch(hub, tmp_path)
        out, err = capfd.readouterr()
        assert (out, err.splitlines()[0], err.splitlines()[-1]) == ("", "org/big: resolving", "org/big: ready")
        logger = logging.getLogger("yaie_async")
        monkeypatch.setattr(logger, "level", logging.WARNING)
        fetch(hub, tmp_path)
        monkeypatch.setattr(logger, "level", logging.NOTSET)
        disable_progress_bars()
        try:
            fetch(hub, tmp_path)
        finally:
            enable_progress_bars()
    assert capfd.readouterr() == ("", "")


class StandIn:
    """A stream of a tee or an IDE, with what is given of a stream and no more."""

    def __init__(self, **methods: object) -> None:
        self.__dict__.update(methods)


def fail(*_: object) -> None:
    raise BrokenPipeError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: dict[str, Callable[[TextIO], Any]] = {
    "none": lambda _: None,
    "closed": lambda _: closed(),
    "no methods": lambda _: StandIn(),
    "isatty fails": lambda _: StandIn(isatty=fail, write=print, flush=print),
    "no file": lambda _: StandIn(isatty=lambda: True, write=fail, flush=fail),
    "no descriptor": lambda _: StandIn(isatty=lambda: True, fileno=lambda: -1, write=fail, flush=fail),
    "broken terminal": lambda t: StandIn(
        isatty=lambda: True, fileno=t.fileno, encoding="utf-8", write=fail, flush=fail
    ),
    "bare terminal": lambda t: StandIn(isatty=lambda: True, fileno=t.fileno, write=t.write, flush=t.flush),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("configured", [True, False])
def test_stderr_that_is_no_file(
    kind: str, configured: bool, hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands for stderr, a load ends well, and the streams are the same afterwards."""
    put_fake("org/big", 1000)
    monkeypatch.setenv("TERM", "xterm")
    with open_terminal() as terminal:
        stream = STREAMS[kind](terminal.stream)
        monkeypatch.setattr(sys, "stderr", stream)
        stdout = sys.stdout
        with nullcontext() if configured else no_logging():
            fetch(hub, tmp_path)
        assert sys.stderr is stream and sys.stdout is stdout
        monkeypatch.undo()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with open_terminal() as terminal:
        yield terminal


@contextmanager
def stderr_is(terminal: Terminal, **environment: str) -> Iterator[None]:
    """Make stderr a terminal of 80 columns. Not in a fixture: pytest sets stderr between those and the test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", **environment}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stderr", terminal.stream)
        yield


def load_with(hub: HubServer, put_fake: Put, cache: Path, meanwhile: Callable[[], object]) -> None:
    """Load a model, and call a function in the middle of its download."""
    put_fake("org/big", 1 << 20)
    stall = Stall(1000)
    hub.faults.add(stall, path="^/cdn/")
    loader = ModelLoader("org/big", endpoint=hub.url, cache_dir=cache)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(loader.prefetch)
            await until(lambda: loader.progress is not None and loader.progress.bytes_done >= 1000)
            meanwhile()
            stall.gate.open()

    anyio.run(main)


HIDE = "\x1b[?25l"  # the cursor, which a display of rich hides


def test_the_table_on_a_terminal(terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A terminal shows the table, and what is printed meanwhile above it."""
    with stderr_is(terminal):
        load_with(hub, put_fake, tmp_path, lambda: print("hello", file=sys.stderr))
    wait_until(lambda: "ready" in terminal.text)
    assert HIDE in terminal.text
    assert "hello\r\n" in terminal.text
    assert re.search(r"org/big +ready .*━━━━━━.* 1.0 MB of 1.0 MB", terminal.text)


def test_a_terminal_that_is_closed_in_the_middle(
    terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """A load survives its terminal."""
    with stderr_is(terminal):
        load_with(hub, put_fake, tmp_path, terminal.stream.close)


def test_a_terminal_that_is_stopped(terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """While its output is stopped (Ctrl-S) loads go on to their end, and what they show comes when it goes on."""

    def stop() -> None:
        termios.tcflow(terminal.stream, termios.TCOOFF)

    with stderr_is(terminal):
        load_with(hub, put_fake, tmp_path, stop)
        assert sys.stderr is terminal.stream
        termios.tcflow(terminal.stream, termios.TCOON)
    wait_until(lambda: re.search(r"org/big +ready .* 1.0 MB of 1.0 MB", terminal.text) is not None)


def test_a_child_that_is_forked_during_a_load(
    terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """A child begins a table of its own, which the end of its parent's loads does not touch."""

    def fork() -> None:
        right = False
        if not (child := os.fork()):
            try:
                right = sys.stderr is terminal.stream and table.running == 0 and table.has_room()
                with table.row("of the child"):
                    right &= table.running == 1
            finally:
                os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0

    from yaie_async.loader.table import table

    with stderr_is(terminal):
        load_with(hub, put_fake, tmp_path, fork)


def test_a_terminal_that_can_t_move_its_cursor(
    terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """Such a terminal gets plain lines."""
    put_fake("org/big", 1000)
    with stderr_is(terminal, TERM="dumb"), no_logging():
        fetch(hub, tmp_path)
    wait_until(lambda: "org/big: ready" in terminal.text)
    assert "\x1b" not in terminal.text


def test_without_color(terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """NO_COLOR is honoured, and one column is enough for a terminal."""
    put_fake("org/big", 1000)
    with stderr_is(terminal, NO_COLOR="1", COLUMNS="1"):
        fetch(hub, tmp_path)
    wait_until(lambda: "\x1b[?25h" in terminal.text)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.text)


def test_an_application_with_a_display_of_its_own(
    terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While rich shows something for the application, a load is logged: two displays would draw over each other."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    put_fake("org/big", 1000)
    with caplog.at_level(logging.INFO, "yaie_async"), stderr_is(terminal):
        with Bars(console=Console(file=terminal.stream)):
            fetch(hub, tmp_path)
        assert sys.stderr is terminal.stream
    assert caplog.messages[-1] == "org/big: ready"
    wait_until(lambda: "\x1b[?25h" in terminal.text)
    assert terminal.text.count(HIDE) == 1


def test_an_application_that_begins_to_display(
    terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """rich's own displays can begin and end while the table is shown."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    def show() -> None:
        with Bars(console=Console(file=terminal.stream)) as bars:
            bars.add_task("mine", total=1)

    with stderr_is(terminal):
        load_with(hub, put_fake, tmp_path, show)
        assert sys.stderr is terminal.stream


def test_streams_that_are_replaced_in_the_middle(
    terminal: Terminal, hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is set during a load stays set, gets no table, and stdout keeps what is printed to a file."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)

    def replace() -> None:
        print("result")
        sys.stderr = err

    with stderr_is(terminal):
        load_with(hub, put_fake, tmp_path, replace)
        assert (sys.stdout, sys.stderr) == (out, err)
    assert (out.getvalue(), err.getvalue()) == ("result\n", "")


def test_a_handler_of_logging_that_fails(
    hub: HubServer, put_fake: Put, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error of a handler is printed, as logging does it for its own, and the load goes on."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no room for " + record.getMessage())

    put_fake("org/big", 1000)
    logger, handler = logging.getLogger("yaie_async"), Broken()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        fetch(hub, tmp_path)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert "RuntimeError: no room for org/big: ready" in capfd.readouterr().err


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_a_stream_or_a_callback_that_raises_a_cancellation(
    error: type[BaseException], hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no coroutines: an error that means a cancellation elsewhere ends no load."""

    def raises(*_: object) -> None:
        raise error

    put_fake("org/big", 1000)
    anyio.run(ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path, on_progress=raises).prefetch)
    monkeypatch.setattr(sys, "stderr", StandIn(isatty=raises, write=raises, flush=raises))
    with no_logging():
        fetch(hub, tmp_path)
    monkeypatch.undo()
    with Seen().row("m") as show, monkeypatch.context() as patch:
        patch.setattr(Seen, "draw", raises)
        show(Progress("m", "ready"))


@pytest.mark.parametrize("get_ipython", [None, fail])
def test_an_odd_ipython(
    get_ipython: object, hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load next to a stand-in for IPython is logged."""
    monkeypatch.setitem(sys.modules, "IPython", StandIn(get_ipython=get_ipython))
    put_fake("org/big", 1000)
    fetch(hub, tmp_path)


@pytest.mark.parametrize("raises", [False, True])
def test_a_factory_of_log_records(
    raises: bool, hub: HubServer, put_fake: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A factory may set a field of ours, which then stays as it is, or raise; the load goes on."""
    before = logging.getLogRecordFactory()

    def factory(*of: Any) -> logging.LogRecord:
        record = before(*of)
        record.stage = 1 / (not raises) if record.name == "yaie_async" else ""
        return record

    put_fake("org/big", 1000)
    logging.setLogRecordFactory(factory)
    try:
        with caplog.at_level(logging.INFO, "yaie_async"):
            fetch(hub, tmp_path)
    finally:
        logging.setLogRecordFactory(before)
    fields = caplog.records[-1].__dict__
    assert (fields["model"], fields["stage"]) == ("org/big", "ready" if raises else 1)


def test_a_handler_that_fails_for_a_record_of_httpx(
    hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """httpx and httpcore log from within our requests; an error of a handler there ends no load."""
    seen: set[str] = set()
    ours = {"httpx", "httpcore", "yaie_async"}

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.add(name := record.name.split(".")[0])
            if name in ours:  # and not the test's hub
                raise RuntimeError

    put_fake("org/big", 1000)
    monkeypatch.setattr(logging.root, "handlers", [Broken()])
    monkeypatch.setattr(logging, "raiseExceptions", False)
    level = logging.root.level
    logging.root.setLevel(logging.DEBUG)
    try:
        fetch(hub, tmp_path)
    finally:
        logging.root.setLevel(level)
    assert ours <= seen


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


def test_the_total() -> None:
    """The total counts what stopped loads have, and neither bytes nor rates of those that failed."""
    loads = [
        (Progress("org/a", "downloading", 500_000, 2_000_000, 300_000.0, 5.0), ""),
        (Progress("org/b", "downloading", 0, 4_000_000, 200_000.0, 20.0), ""),
        (Progress("org/c", "ready", 0, 0), ""),
    ]
    found = total(loads)
    assert (found.name, found.amount, found.rate, found.left) == (
        "3 models",
        "500.0 kB of 6.0 MB",
        "500.0 kB/s",
        "20 s left",
    )
    failed = total([loads[0], (loads[1][0], "failed"), loads[2]])
    assert (failed.amount, failed.rate, failed.left) == ("500.0 kB of 2.0 MB", "300.0 kB/s", "5 s left")
    stopped = total([(event, "stopped") for event, _ in loads])
    assert (stopped.name, stopped.amount, stopped.rate, stopped.left) == ("3 models", "500.0 kB of 6.0 MB", "", "")
    assert row_of(loads[0][0], "stopped").amount == "500.0 kB of 2.0 MB"


def test_the_total_of_what_is_not_known() -> None:
    """No time is left to tell while a load doesn't know its files, and no bar is full while a model is built."""
    small = Progress("org/a", "downloading", 500_000, 1_000_000, 100_000.0, 5.0)
    assert total([(small, ""), (Progress("org/b", "resolving"), "")]).left == ""
    built = Progress("org/c", "building", 500_000, 500_000, seconds_left=90.0)
    assert total([(small, ""), (built, "")]).left == "1m30s left"
    assert (total([(built, "")] * 2).bar, total([(Progress("org/c", "ready", 5, 5), "")]).bar) == (None, 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.4, "59 s"), (59.6, "1m00s"), (725, "12m05s"), (28_020, "7h47m"), (86_399, "23h59m"), (2e11, "99 d")],
)
def test_a_time_is_short(seconds: float, text: str) -> None:
    """A time has at most six characters, however long it is."""
    assert describe(Progress("m", "importing", seconds_left=seconds)) == f"m: importing {text} left"


class Seen(Board):
    """Keeps what would be drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[list[tuple[str, str]]] = []

    def draw(self, *, last: bool) -> None:
        self.pictures.append([(row.name, row.stage) for row in self.rows()])


@pytest.mark.parametrize(("error", "word"), [(OSError, "failed"), (KeyboardInterrupt, "stopped")])
def test_a_row_that_ends_early(error: type[BaseException], word: str) -> None:
    """Failed and stopped models stay in the table until the last load has ended."""
    board = Seen()
    with board.row("other") as show:
        with pytest.raises(error), board.row("org/a"):
            raise error
        show(Progress("other", "ready"))
    assert board.pictures[-1] == [("other", "ready"), ("org/a", word), ("2 models", "")]
    assert board.rows() == [] and board.running == 0


def test_a_table_that_is_higher_than_the_terminal() -> None:
    """In a table higher than the terminal, rows of ready models are dropped and the total stays."""
    board = Seen()
    with ExitStack() as stack:
        for number in range(40):
            show = stack.enter_context(board.row(f"m{number}"))
            show(Progress(f"m{number}", "ready" if number < 30 else "downloading", 1, 1))
        assert [row.name for row in board.rows(10)] == [*(f"m{number}" for number in range(30, 40)), "40 models"]
        assert len(board.rows(-1)) == 2
