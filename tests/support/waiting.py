"""Waits for a condition that another thread or task makes true."""

from __future__ import annotations

from collections.abc import Callable

import anyio


async def until(condition: Callable[[], object], *, seconds: float = 10) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: it did not become true.
    """
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.002)
