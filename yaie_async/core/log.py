"""The logger of this package. README lists the fields of its records."""

import logging
from contextlib import suppress

logger: logging.Logger = logging.getLogger("yaie_async")


def _handle(record: logging.LogRecord) -> None:
    """Hand a record to the application's handlers. One that raises is reported as `logging` does, and ends no load.

    Even those of `logging` raise where stderr is closed.
    """
    try:
        logging.Logger.handle(logger, record)
    except Exception:  # noqa: BLE001 - a handler may raise anything
        with suppress(Exception):
            logging.Handler().handleError(record)


logger.handle = _handle  # type: ignore[method-assign]
