"""Requirements on the system: tests skip with the name of the missing package, or fail in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def skip_without(what: str, package: str) -> NoReturn:
    """Skip a test for a missing requirement; fail it under YAIE_ASYNC_NO_SKIPS=1."""
    reason = f"needs {what} (Debian package {package})"
    if os.environ.get("YAIE_ASYNC_NO_SKIPS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def require_program(name: str, package: str) -> str:
    """Return the path of a program, or skip the test with the name of its Debian package."""
    return shutil.which(name) or skip_without(name, package)
