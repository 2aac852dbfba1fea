"""The result of a command: one JSON object or a few lines on stdout, and an exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from yaie_async.loader.streams import is_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yaie_async.core.errors import LoaderError

_LONGEST_LINE = 10_000  # characters
DONE = 0
FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as in shells. Typer exits with 2 on wrong usage."""

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed (the message says why and what to do); 2 wrong usage; 130 Ctrl-C. "
    "Progress goes to stderr, the result to stdout."
)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command.

    Attributes:
        document: the JSON object that `--json` prints.
        lines: the lines that are printed otherwise.
        failed: whether the exit code is 1.
    """

    document: dict[str, Any]
    lines: list[RenderableType]
    failed: bool = False


def run_and_exit(work: Callable[[], CommandResult], *, as_json: bool, when_interrupted: str) -> NoReturn:
    """Run a command, print its result or its error, and exit. A LoaderError is printed without a traceback.

    Args:
        work: the command.
        as_json: print a JSON object instead of lines.
        when_interrupted: a sentence about the state that Ctrl-C leaves behind.
    """
    _log_to_stderr()
    try:
        outcome = work()
    except KeyboardInterrupt:
        print_status(f"Interrupted. {when_interrupted}")
        if as_json:
            print_json({"ok": False, "error": {"type": "KeyboardInterrupt", "message": when_interrupted}})
        exit_process(INTERRUPTED)
    except Exception as error:
        from yaie_async.core.errors import LoaderError

        if not isinstance(error, LoaderError):
            raise  # a bug, whose report needs the traceback
        outcome = CommandResult({"error": error_document(error)}, [], failed=True)
        if not as_json:
            print_status(error_line(error))
    if as_json:
        print_json({"ok": not outcome.failed, **outcome.document})
    else:
        _print_lines(outcome.lines)
    exit_process(FAILED if outcome.failed else DONE)


def error_document(error: LoaderError) -> dict[str, Any]:
    """Return an error as JSON: its type, message and attributes, as `yaie_async.core.errors` documents them."""
    attributes = {
        name: value
        for name, value in vars(error).items()
        if not name.startswith("_") and isinstance(value, str | int | float | None)
    }
    return {"type": type(error).__name__, "message": str(error), **attributes}


def error_line(error: LoaderError) -> str:
    """Return an error as text: its type and message."""
    return f"{type(error).__name__}: {error}"


def print_status(text: str) -> None:
    """Print a line on stderr, which leaves stdout to the result."""
    if sys.stderr is not None:  # else it would go to stdout
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - a command line prints


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to the current sys.stderr, which prints above the progress table while that is displayed."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        from yaie_async.core.errors import printable

        return printable(super().format(record), _LONGEST_LINE)  # a server may choose the name of a file


def _log_to_stderr() -> None:
    logger = logging.getLogger("yaie_async")
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def print_json(document: dict[str, Any]) -> None:
    """Print the JSON object of `--json`."""
    print(json.dumps(document, indent=2 if is_terminal(sys.stdout) else None), flush=True)  # noqa: T201


def _print_lines(lines: list[RenderableType]) -> None:
    from rich.console import Console

    from yaie_async.core.errors import printable

    # A file or a pipe has no width, so lines are not wrapped there.
    width = None if is_terminal(sys.stdout) else 10_000
    console = Console(highlight=False, markup=False, soft_wrap=True, width=width)
    for line in lines:
        console.print(printable(line, _LONGEST_LINE) if isinstance(line, str) else line)


def exit_process(code: int) -> NoReturn:
    """Exit the process, without waiting for threads that can't be interrupted, such as an import or a build."""
    working = any(thread.name.startswith("yaie_async") for thread in threading.enumerate())
    if code != INTERRUPTED and not working:
        raise typer.Exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its reader has exited
            stream.flush()
    os._exit(code)
