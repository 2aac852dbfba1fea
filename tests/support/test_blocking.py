"""Tests of the check for blocking calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError

from yaie_async.localhub import LocalHub


@pytest.mark.anyio
async def test_a_blocking_call_of_the_package_fails_a_test(tmp_path: Path, anyio_backend: Any) -> None:
    """A disk read on an asyncio loop raises in code of the package, and not in a test's own code."""
    (tmp_path / "file").write_text("a test may write")
    if anyio_backend[0] == "trio":
        LocalHub(tmp_path)
    else:
        with pytest.raises(BlockingError):
            LocalHub(tmp_path)
