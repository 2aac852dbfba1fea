"""How every command ends: one JSON object or a few lines on stdout, an exit code, and no traceback of a LoaderError."""

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

if TYPE_CHECKING:
    from rich.console import RenderableType

    from yaie_async.core.errors import LoaderError

DONE = 0
FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells have it; 2 is wrong usage, which typer exits with."""

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed (the message says why and what to do); 2 wrong usage; 130 Ctrl-C. "
    "Progress goes to stderr, the result to stdout."
)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command found.

    Attributes:
        document: for `--json`.
        lines: for a person.
        failed: whether the exit code is 1.
    """

    document: dict[str, Any]
    lines: list[RenderableType]
    failed: bool = False


def run_and_exit(work: Callable[[], CommandResult], *, as_json: bool, when_interrupted: str) -> NoReturn:
    """Run a command to its end, whatever that is, and leave the process.

    Args:
        work: the command.
        as_json: print a JSON object instead of lines.
        when_interrupted: what a Ctrl-C leaves behind, for stderr.
    """
    _log_to_stderr()
    try:
        outcome = work()
    except KeyboardInterrupt:
        print_status(f"Interrupted: {when_interrupted}")
        if as_json:
            print_json({"ok": False, "error": {"type": "KeyboardInterrupt", "message": when_interrupted}})
        exit_process(INTERRUPTED)
    except Exception as error:
        from yaie_async.core.errors import LoaderError

        if not isinstance(error, LoaderError):
            raise  # a mistake of ours: its traceback is what a report needs
        outcome = CommandResult({"error": error_document(error)}, [], failed=True)
        if not as_json:
            print_status(error_line(error))
    if as_json:
        print_json({"ok": not outcome.failed, **outcome.document})
    else:
        _print_lines(outcome.lines)
    exit_process(FAILED if outcome.failed else DONE)


def error_document(error: LoaderError) -> dict[str, Any]:
    """An error as JSON: its type, its text, and its attributes, as `yaie_async.core.errors` documents them."""
    facts = {
        name: value
        for name, value in vars(error).items()
        if not name.startswith("_") and isinstance(value, str | int | float | None)
    }
    return {"type": type(error).__name__, "message": str(error), **facts}


def error_line(error: LoaderError) -> str:
    """An error for a person: its type and its message."""
    return f"{type(error).__name__}: {error}"


def print_status(text: str) -> None:
    """A line for a person, beside the result."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - a command line prints


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to what sys.stderr is at that moment: above the table of a download, while there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log_to_stderr() -> None:
    logger = logging.getLogger("yaie_async")
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def print_json(document: dict[str, Any]) -> None:
    """The one object of `--json`."""
    print(json.dumps(document, indent=2 if sys.stdout.isatty() else None), flush=True)  # noqa: T201


def _print_lines(lines: list[RenderableType]) -> None:
    from rich.console import Console

    # In a file or a pipe nothing is folded: it has no width.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(highlight=False, markup=False, soft_wrap=True, width=width)
    for line in lines:
        console.print(line)


def exit_process(code: int) -> NoReturn:
    """Exit. An import or a build that can't be stopped is not waited for, and keeps its interpreter."""
    working = any(thread.name.startswith("yaie_async") for thread in threading.enumerate())
    if code != INTERRUPTED and not working:
        raise typer.Exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # whoever read it has gone
            stream.flush()
    os._exit(code)
