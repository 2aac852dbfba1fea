"""The heartbeat measures how long the loop was away."""

import time

import anyio
import pytest

from yaie_async.demo.heartbeat import heartbeat

pytestmark = pytest.mark.anyio


async def test_a_blocked_loop_is_seen() -> None:
    """In the middle of the block, and at its end."""
    async with heartbeat() as pulse:
        await anyio.sleep(0.02)
        time.sleep(0.05)  # noqa: ASYNC251 - it is what is measured
        await anyio.sleep(0.01)
        in_the_middle = pulse.longest
        time.sleep(0.08)  # noqa: ASYNC251
    assert 0.04 < in_the_middle < 5
    assert pulse.longest > 0.07
    assert pulse.beats > 3


async def test_an_error_comes_out_bare() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with heartbeat():
            raise KeyError("mine")
