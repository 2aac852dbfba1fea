"""The logger of this package. README lists the fields of its records."""

import logging

logger: logging.Logger = logging.getLogger("yaie_async")
