"""Tests of the process-wide settings that a load changes and restores."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.process import in_a_new_process

_BACKENDS = {"asyncio": ("asyncio", {}), "uvloop": ("asyncio", {"use_uvloop": True}), "trio": ("trio", {})}


@pytest.mark.parametrize("backend", _BACKENDS)
def test_loads_that_succeed_fail_and_are_cancelled_at_once(made: Callable[[str], Path], backend: str) -> None:
    """The settings are changed while any load runs, and restored after the last, however the loads end."""
    code = """
import os
from importlib.machinery import ExtensionFileLoader
from yaie_async import LoaderError, ModelLoader
def settings():
    cores = [os.sched_getaffinity(thread.native_id or 0) for thread in threading.enumerate()]
    return sys.getswitchinterval(), gc.isenabled(), ExtensionFileLoader.create_module, cores.count(cores[0]) == len(cores)
async def main():
    before = settings()
    async def failing():
        try:
            await ModelLoader("./no/such/directory").load_model()
        except LoaderError:
            ended.append("failed")
    async def cancelled():
        with anyio.CancelScope() as scope:
            async def watch():
                while "torch" not in sys.modules:
                    await anyio.sleep(0.001)
                held.append([now != then for now, then in zip(settings(), before)])
                scope.cancel()
            async with anyio.create_task_group() as inner:
                inner.start_soon(watch)
                await ModelLoader(sys.argv[1]).load()
        ended.append("cancelled")
    async def succeeding():
        await ModelLoader(sys.argv[1]).load()
        ended.append("loaded")
    ended, held = [], []
    async with anyio.create_task_group() as group:
        for one in (failing, cancelled, succeeding):
            group.start_soon(one)
    print(json.dumps([sorted(ended), held, settings() == before]))
name, options = json.loads(sys.argv[2])
anyio.run(main, backend=name, backend_options=options)
"""
    found = in_a_new_process(code, str(made("llama")), json.dumps(_BACKENDS[backend]))
    more_cores = len(os.sched_getaffinity(0)) > 1
    assert found == [["cancelled", "failed", "loaded"], [[True, True, True, more_cores]], True]


def test_without_responsive_nothing_is_touched(made: Callable[[str], Path]) -> None:
    """With responsive=False a load never changes the switch interval, garbage collection or CPU affinity."""
    code = """
import os
from yaie_async import ModelLoader
def cores():
    found = set()
    for thread in threading.enumerate():
        try:
            found.add(len(os.sched_getaffinity(thread.native_id or 0)))
        except ProcessLookupError:
            pass
    return len(found)
async def main():
    before, seen = sys.getswitchinterval(), set()
    async def watch():
        while True:
            seen.add((sys.getswitchinterval() == before, gc.isenabled(), gc.get_freeze_count(), cores()))
            await anyio.sleep(0.002)
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await ModelLoader(sys.argv[1], responsive=False).load()
        group.cancel_scope.cancel()
    print(json.dumps(sorted(seen)))
anyio.run(main)
"""
    assert in_a_new_process(code, str(made("llama"))) == [[True, True, 0, 1]]
