"""Loads that outlive their callers, and loads that several event loops share."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from tests.loader.conftest import Put
from tests.support.faults import Stall, Status
from tests.support.hub import HubServer
from tests.support.waiting import until, wait_until
from yaie_async import (
    InvalidArgumentError,
    LoaderError,
    ModelLoader,
    ModelNotFoundError,
    Progress,
    TokenizerError,
    WarmupError,
)
from yaie_async.core.loops import Loop
from yaie_async.core.tasks import task_group
from yaie_async.loader.background import Background

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]


@pytest.fixture
def loader(hub: HubServer, put: Put, tmp_path: Path) -> Callable[..., ModelLoader]:
    """Makes loaders of a model on the hub."""
    put("org/tiny")
    return lambda **options: ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache", **options)


def _bodies(hub: HubServer) -> int:
    return sum(request.path.startswith("/cdn/") for request in hub.requests)


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "no caller awaits" in record.getMessage()]


async def test_it_outlives_a_caller_who_came_at_once(hub: HubServer, loader: Callable[..., ModelLoader]) -> None:
    """The caller's time limit ends before the bytes come; the load goes on, and nothing is requested twice."""
    one, stall = loader(), Stall()
    hub.faults.add(stall, path="^/cdn/.*safetensors")
    one.start()
    one.start()
    with anyio.move_on_after(0.3) as scope:
        await one.load()
    assert scope.cancelled_caught
    await hub.until(lambda: any("safetensors" in request.path for request in hub.requests))
    with anyio.move_on_after(0.05):
        await one.load_tokenizer()
    stall.gate.open()
    model, tokenizer = await one.load()
    bodies = _bodies(hub)
    assert await one.load() == (model, tokenizer)
    paths = [(request.path, request.range) for request in hub.requests]
    assert len(set(paths)) == len(paths)
    assert _bodies(hub) == bodies


async def test_stop_ends_it_and_those_who_wait(hub: HubServer, loader: Callable[..., ModelLoader]) -> None:
    """They get an error each. The next load goes on from what is on disk; to stop nothing is nothing."""
    one, stall, failed = loader(), Stall(), []
    hub.faults.add(stall, path="^/cdn/.*safetensors")

    async def wait() -> None:
        with pytest.raises(WarmupError, match=r"ended by stop\(\)") as caught:
            await one.load()
        failed.append(caught.value)

    await one.stop()
    one.start()
    async with task_group() as group:
        group.start_soon(wait)
        group.start_soon(wait)
        await hub.until(lambda: any("safetensors" in request.path for request in hub.requests))
        await one.stop()
    assert len({id(error) for error in failed}) == 2
    stall.gate.open()
    await one.stop()
    one.start()
    model, _ = await one.load()
    await one.stop()
    assert await one.load_model() is model


async def test_one_that_is_stopped_at_once_requests_nothing(hub: HubServer, loader: Callable[..., ModelLoader]) -> None:
    one = loader()
    one.start()
    await one.stop()
    assert not hub.requests
    await one.load()


async def test_a_failure_that_nobody_awaits_is_logged_once(
    hub: HubServer, tmp_path: Path, put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    one = ModelLoader("org/late", endpoint=hub.url, cache_dir=tmp_path)
    one.start()
    await until(lambda: _said(caplog))
    put("org/late")
    await one.load()
    assert len(_said(caplog)) == 1
    assert "org/late" in _said(caplog)[0]
    assert [record.levelno for record in caplog.records if "no caller" in record.getMessage()] == [logging.ERROR]


async def test_a_failure_that_is_awaited_is_raised_and_not_logged(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = ModelLoader("org/none", endpoint=hub.url, cache_dir=tmp_path)
    one.start()
    with pytest.raises(ModelNotFoundError):
        await one.load()
    one.start()
    with pytest.raises(ModelNotFoundError):
        async for _ in one.events():
            pass
    await one.stop()
    assert not _said(caplog)


async def test_the_model_is_loaded_where_the_tokenizer_can_t_be(
    hub: HubServer, loader: Callable[..., ModelLoader], hub_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An app may have a tokenizer of its own. Who waits for the model never gets to load it, and a new attempt at the
    tokenizer does not wait for the model. `unload` frees the model."""
    (hub_root / "org/tiny/tokenizer.json").write_text("{}")
    one, stall = loader(), Stall()
    weights = hub.faults.add(stall, path="^/cdn/.*safetensors", times=None)
    one.start()
    with pytest.raises(TokenizerError):
        await one.load()
    with anyio.move_on_after(0.3):
        await one.load_model()
    await until(lambda: weights.hits)
    hits = weights.hits
    with pytest.raises(TokenizerError):
        await one.load_tokenizer()
    stall.gate.open()
    model = weakref.ref(await one.load_model())
    assert weights.hits == hits
    assert not _said(caplog)  # somebody was told
    await one.unload()
    assert model() is None


async def test_a_tokenizer_that_nobody_awaits_is_logged(
    loader: Callable[..., ModelLoader], hub_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (hub_root / "org/tiny/tokenizer.json").write_text("{}")
    one = loader()
    one.start()
    await one.load_model()
    await until(lambda: _said(caplog))
    assert _said(caplog)[0].startswith("The tokenizer of org/tiny")


async def test_it_begins_again_while_it_is_being_stopped(hub: HubServer, loader: Callable[..., ModelLoader]) -> None:
    """What began after the stop is not ended by it, and does not get its error."""
    one, stall = loader(), Stall()
    hub.faults.add(stall, path="^/cdn/.*safetensors")
    one.start()
    await hub.until(lambda: any("safetensors" in request.path for request in hub.requests))
    async with task_group() as group:
        group.start_soon(one.stop)
        await until(lambda: one._background is None)
        one.start()
        stall.gate.open()
        assert await one.load()


async def test_a_started_load_is_freed_without_the_collector(loader: Callable[..., ModelLoader]) -> None:
    one = loader()
    one.start()
    model = weakref.ref((await one.load())[0])
    while one._background is None or not one._background.ended:
        await anyio.sleep(0.001)
    gc.collect()
    gc.disable()
    try:
        del one
        assert model() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), BaseException("own")], ids=repr)
def test_nothing_of_it_ends_trio(error: BaseException, tmp_path: Path) -> None:
    async def main() -> None:
        async def fail(_: Background) -> None:
            raise error

        background = Background(fail, "test")
        await until(lambda: background.ended)
        assert background.error is error

    anyio.run(main, backend="trio")


async def test_a_loop_begins_while_trio_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread: asyncio's loops have nothing to do with it."""
    if "trio" not in type(Loop().native).__module__:
        monkeypatch.setitem(sys.modules, "trio", ModuleType("trio"))
        assert Loop().is_here


def test_it_needs_a_loop() -> None:
    with pytest.raises(InvalidArgumentError, match="running event loop"):
        ModelLoader("org/tiny").start()


def test_a_callback_of_the_loop_may_start_it(loader: Callable[..., ModelLoader]) -> None:
    """There is no task then."""
    one = loader()

    async def main() -> None:
        asyncio.get_running_loop().call_soon(one.start)
        await asyncio.sleep(0.01)
        assert one._background is not None
        await one.load()

    asyncio.run(main())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_ends_with_its_loop(backend: str, hub: HubServer, loader: Callable[..., ModelLoader]) -> None:
    """Without a word of the loop, and the loader loads on the next one."""
    one, stall = loader(), Stall()
    hub.faults.add(stall, path="^/cdn/.*safetensors")

    async def begin() -> None:
        one.start()
        await hub.until(lambda: any("safetensors" in request.path for request in hub.requests))

    anyio.run(begin, backend=backend)
    stall.gate.open()
    assert asyncio.run(one.load())


async def test_events_end_after_ready(loader: Callable[..., ModelLoader]) -> None:
    one = loader()
    events = [event async for event in one.events()]
    assert [event.stage for event in events].count("ready") == 1
    assert events[-1].stage == "ready"
    assert len(set(events)) == len(events)
    assert one._built_model.result is not None
    assert one._built_tokenizer.result is not None
    assert [event.stage async for event in one.events()] == ["ready"]


async def test_a_slow_reader_does_not_load_again(loader: Callable[..., ModelLoader]) -> None:
    """What has been unloaded while it looked away stays unloaded. A prefetch has events of its own."""
    one = loader()
    async with aclosing(one.events()) as events:
        stages = [(await anext(events)).stage]
        model, _ = await one.load()
        await one.unload()
        await one.prefetch()
        stages += [event.stage async for event in events]
    assert stages[-1] == "ready"
    assert len(stages) <= 2
    assert one._built_model.result is None
    assert model is not None


async def test_events_that_are_left_early_do_not_end_the_load(
    hub: HubServer, loader: Callable[..., ModelLoader]
) -> None:
    one, stall = loader(), Stall()
    hub.faults.add(stall, path="^/cdn/.*safetensors")
    events = one.events()
    async for event in events:
        if event.stage == "downloading":
            break
    await events.aclose()
    stall.gate.open()
    await one.load()
    paths = [(request.path, request.range) for request in hub.requests]
    assert len(set(paths)) == len(paths)


async def test_events_raise_the_error_of_the_load(hub: HubServer, loader: Callable[..., ModelLoader]) -> None:
    one = loader()
    hub.faults.add(Status(404), path="^/cdn/", times=None)
    with pytest.raises(LoaderError):
        async for event in one.events():
            assert event.stage != "ready"
    stall = Stall()
    hub.faults.clear()
    hub.faults.add(stall, path="^/cdn/.*safetensors")

    async def stop() -> None:
        await hub.until(lambda: any("safetensors" in request.path for request in hub.requests))
        await one.stop()

    async with task_group() as group:
        group.start_soon(stop)
        with pytest.raises(WarmupError):
            async for _ in one.events():
                pass
    stall.gate.open()


@pytest.mark.parametrize("first", ["asyncio", "trio"])
def test_threads_load_once(first: str, hub: HubServer, loader: Callable[..., ModelLoader]) -> None:
    """Each has a loop of its own, and its callback runs there."""
    seen: dict[int, list[Progress]] = {}
    one = loader(on_progress=lambda event: seen.setdefault(threading.get_ident(), []).append(event))
    stall, models = Stall(), []
    hub.faults.add(stall, path="^/cdn/.*safetensors")

    async def load() -> None:
        models.append(await one.load())

    def thread(backend: str) -> threading.Thread:
        each = threading.Thread(target=anyio.run, args=(load,), kwargs={"backend": backend})
        each.start()
        return each

    threads = [thread(first), thread("asyncio"), thread("trio")]
    wait_until(lambda: len(seen) == 3)
    stall.gate.open()
    for each in threads:
        each.join(60)
    assert len({id(model) for model, _ in models}) == 1
    assert len(models) == 3
    assert all(events[-1].stage == "ready" for events in seen.values())
    paths = [(request.path, request.range) for request in hub.requests]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("first", ["asyncio", "trio"])
async def test_another_loop_takes_over(
    first: str, anyio_backend: Any, hub: HubServer, loader: Callable[..., ModelLoader]
) -> None:
    """The loop that works ends before its load, in the thread of an app that goes on."""
    one, stall, end = loader(), Stall(), threading.Event()
    hub.faults.add(stall, path="^/cdn/.*safetensors")

    async def begin() -> None:
        one.start()
        await until(end.is_set)

    thread = threading.Thread(target=anyio.run, args=(begin,), kwargs={"backend": first})
    thread.start()
    await hub.until(lambda: any("safetensors" in request.path for request in hub.requests))

    async def release() -> None:
        await until(lambda: one._built_model._flight and one._built_model._flight.callers > 1)
        end.set()
        await until(lambda: not thread.is_alive())
        stall.gate.open()

    async with task_group() as group:
        group.start_soon(release)
        assert await one.load()


async def test_stop_from_another_loop(anyio_backend: Any, hub: HubServer, loader: Callable[..., ModelLoader]) -> None:
    one, stall = loader(), Stall()
    hub.faults.add(stall, path="^/cdn/.*safetensors")
    one.start()
    await hub.until(lambda: any("safetensors" in request.path for request in hub.requests))
    await anyio.to_thread.run_sync(lambda: asyncio.run(one.stop()))
    stall.gate.open()
    assert await one.load()


def test_a_forked_child_loads_for_itself(hub: HubServer, loader: Callable[..., ModelLoader], tmp_path: Path) -> None:
    """What its parent has begun is not under way there."""
    code = (
        "import asyncio, os, sys\n"
        "from yaie_async import ModelLoader, warm_imports\n"
        f"loader = ModelLoader('org/tiny', endpoint={hub.url!r}, cache_dir={str(tmp_path / 'cache')!r})\n"
        "def child():\n"
        "    asyncio.run(loader.prefetch())\n"
        "    async def load():\n"
        "        await loader.load_tokenizer()\n"
        "        loader.start()\n"
        "        await loader.stop()\n"
        "    asyncio.run(load())\n"
        "    os._exit(0)\n"
        "async def main():\n"
        "    await warm_imports()\n"  # a child of a process that is importing may hang
        "    loader.start()\n"
        "    await asyncio.sleep(0)\n"
        "    await asyncio.sleep(0)\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        import threading\n"
        "        threading.Thread(target=child).start()\n"
        "        import time; time.sleep(60); os._exit(1)\n"
        "    while True:\n"
        "        done, status = os.waitpid(pid, os.WNOHANG)\n"
        "        if done: break\n"
        "        await asyncio.sleep(.05)\n"
        "    assert status == 0, status\n"
        "    await loader.load()\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=90)
