"""The logger of this package. README lists the fields of its records."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def contained(then: Callable[[BaseException], object] = lambda _: None) -> Iterator[None]:
    """Run code of the application, of whose errors only KeyboardInterrupt and SystemExit come out, else call `then`.

    For what is synchronous: a CancelledError or GeneratorExit out of it cancels nothing.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - it may raise anything
        then(error)


def guarded(name: str) -> logging.Logger:
    """The logger of this name, made to raise nothing, whatever the application's factory, filters and handlers do."""
    logger = logging.getLogger(name)
    logger.handle = partial(_handle, logger.handle)  # type: ignore[method-assign]
    logger.makeRecord = _make_record  # type: ignore[method-assign, assignment]
    return logger


def _handle(handle: Callable[[logging.LogRecord], object], record: logging.LogRecord) -> None:
    """Hand a record to the application's handlers. One that raises is reported as `logging` does, and ends no load.

    Even those of `logging` raise where stderr is closed.
    """

    def report(_: BaseException) -> None:
        with contained():
            logging.Handler().handleError(record)

    with contained(report):
        handle(record)


def _make_record(*of: Any) -> logging.LogRecord:
    """As `Logger.makeRecord`. A field that the application's factory sets stays as it is."""
    *first, extra, stack = of
    first.append(stack)
    record = logging.LogRecord(*first)
    with contained():
        record = logging.getLogRecordFactory()(*first)
    fields: Mapping[str, object] = extra or {}
    with contained():
        record.__dict__.update({key: fields[key] for key in fields.keys() - record.__dict__.keys()})
    return record


logger: logging.Logger = guarded("yaie_async")
