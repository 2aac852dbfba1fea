"""Waits for a condition that another thread or task makes true."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio


async def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: it did not become true.
    """
    with anyio.fail_after(seconds):
        while not condition():
            await anyio.sleep(0.002)


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """The same in a thread, where no loop runs.

    Raises:
        TimeoutError: it did not become true.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.002)
