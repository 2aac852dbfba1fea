"""Tests of Hub: several models, its users, and the release of its connections."""

import asyncio
import contextlib
import os
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.loader.conftest import Put
from tests.support.faults import Corrupt
from tests.support.hub import HubServer
from tests.support.process import in_a_new_process
from tests.support.waiting import until
from yaie_async import (
    ClosedHubError,
    Hub,
    IntegrityError,
    InvalidArgumentError,
    ModelLoader,
    ModelNotFoundError,
    PrefetchError,
)

ours = pytest.mark.anyio


def sockets() -> int:
    """Return the sockets of this process, including those of the test's hub."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return count


# -- several models -----------------------------------------------------------------------------------------


@ours
async def test_several_models_at_once(anyio_backend: Any, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Snapshots are returned in the order of the names, and a repeated name is fetched once."""
    for name in ("org/a", "org/b"):
        put_fake(name, 100_000)
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        snapshots = await one.prefetch("org/b", "org/a", "org/b")
        assert await one.prefetch() == {}
    assert list(snapshots) == ["org/b", "org/a"]
    assert all((snapshot / "model.safetensors").exists() for snapshot in snapshots.values())
    assert len([line for line in hub.lines if line.startswith("GET /cdn/org/b")]) == 1


@ours
@pytest.mark.usefixtures("quick_retries")
async def test_one_that_fails_does_not_stop_the_others(
    anyio_backend: Any, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """PrefetchError has failures and snapshots by name, pickles, and works with `except*`."""
    put_fake("org/good", 100_000)
    put_fake("org/bad", 100_000)
    hub.faults.add(Corrupt(5), path="^/cdn/org/bad", times=None)
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        with pytest.raises(
            PrefetchError, match=r"2 of 3 models could not be fetched\. org/none: .*org/bad: "
        ) as caught:
            await one.prefetch("org/none", "org/good", "org/bad")
    error = caught.value
    assert {model: type(failure) for model, failure in error.failures.items()} == {
        "org/none": ModelNotFoundError,
        "org/bad": IntegrityError,
    }
    assert list(error.snapshots) == ["org/good"]
    assert (error.snapshots["org/good"] / "model.safetensors").exists()
    assert not list((tmp_path / "models--org--bad").glob("snapshots/*/model.safetensors"))
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.snapshots, list(twin.failures)) == (str(error), error.snapshots, list(error.failures))
    rest = error.split(ModelNotFoundError)[1]
    assert isinstance(rest, PrefetchError)
    assert list(rest.failures) == ["org/bad"]


@ours
async def test_a_single_model_that_fails_is_its_own_error(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """The failure of a single model is raised itself, not in a group, also if the model is named twice."""
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        with pytest.raises(ModelNotFoundError):
            await one.prefetch("org/none", "org/none")


# -- users and lifetime ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_connections": 0}, "max_connections must be 1 or more, not 0"),
        ({"max_bytes_per_second": 0}, "max_bytes_per_second must be above 0, not 0"),
        ({"max_bytes_per_second": float("nan")}, "above 0, not nan"),
    ],
)
def test_arguments_that_allow_nothing(options: dict[str, Any], says: str) -> None:
    """Zero connections or bytes per second are refused in the constructor."""
    with pytest.raises(InvalidArgumentError, match=says):
        Hub(**options)


@ours
async def test_a_hub_outside_its_block(anyio_backend: Any, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A Hub has a session only while it is open; loaders open it themselves, and it can be reopened."""
    put_fake("org/big", 1000)
    one = Hub(endpoint=hub.url, cache_dir=tmp_path)
    with pytest.raises(ClosedHubError, match="async with"):
        _ = one.session
    await ModelLoader("org/big", hub=one).prefetch()
    with pytest.raises(ClosedHubError):
        _ = one.session
    async with one:
        first = one.session
        async with one:
            assert one.session is first
        assert one.session is first
        assert not first.client.is_closed
    assert first.client.is_closed
    async with one:
        assert one.session is not first


@ours
async def test_a_hub_that_can_t_be_opened(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A Hub that can't be opened raises each time, counts no user, and opens once the cause is fixed."""
    one = Hub(endpoint="nonsense", cache_dir=tmp_path)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match="'nonsense'"):
            async with one:
                raise AssertionError
    one._environment["endpoint"] = hub.url
    async with one:
        assert one.session


# -- connections --------------------------------------------------------------------------------------------


async def in_use(hub: HubServer, cache: Path) -> Hub:
    """An open Hub with idle connections to the test's hub and to its CDN."""
    one = Hub(endpoint=hub.url, cache_dir=cache)
    await one.__aenter__()
    await one.prefetch("org/big")
    return one


@ours
async def test_connections_are_closed(anyio_backend: Any, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """No connection is open after the last user has left, cancelled or not."""
    put_fake("org/big", 1000)
    before = sockets()
    for cancelled in (False, True):
        one = await in_use(hub, tmp_path / str(cancelled))
        assert sockets() > before
        with anyio.CancelScope() as scope:
            if cancelled:
                scope.cancel()
            await one.__aexit__(None, None, None)
        await until(lambda: sockets() == before)


def _once(task: asyncio.Task[None]) -> None:
    task.cancel()


def _twice(task: asyncio.Task[None]) -> None:
    task.cancel()
    asyncio.get_running_loop().call_soon(task.cancel)


@pytest.mark.parametrize("cancel", [_once, _twice])
@pytest.mark.parametrize("uvloop", [False, True])
def test_a_native_cancel_leaves_no_connection_open(
    cancel: Callable[[asyncio.Task[None]], None], uvloop: bool, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """Native cancellation, which passes anyio's shield, closes the clients as well."""
    put_fake("org/big", 1000)

    async def main() -> None:
        before = sockets()
        one = await in_use(hub, tmp_path)
        leaving: Awaitable[None] = one.__aexit__(None, None, None)
        task = asyncio.ensure_future(leaving)
        await asyncio.sleep(0)
        cancel(task)
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: sockets() == before)

    anyio.run(main, backend_options={"use_uvloop": uvloop})


# -- another anyio ------------------------------------------------------------------------------------------


def test_an_anyio_whose_backend_has_another_name() -> None:
    """The module that is imported early is imported by the first await instead."""
    code = """
import anyio._backends
import yaie_async
sys.modules.pop("anyio._backends._asyncio", None)
sys.modules["anyio._backends._asyncio"] = None
from yaie_async.loader.hub import Hub
del sys.modules["anyio._backends._asyncio"]
async def open_one():
    async with Hub() as hub:
        return hub.in_use
print(json.dumps([anyio.run(open_one), "anyio._backends._asyncio" in sys.modules]))
"""
    assert in_a_new_process(code) == [True, True]
