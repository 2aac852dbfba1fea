"""Killed or cancelled at any moment: the next run goes on, fetches little again, and never links a wrong byte."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.faults import Stall
from tests.support.hub import HubServer
from yaie_async import Hub
from yaie_async.store.blockmap import BLOCK, HEADER_SIZE

SIZE = 6 * BLOCK + 777
CONNECTIONS = 4

_CHILD = """
import os, signal, sys, anyio
from yaie_async import Hub
{setup}
async def main():
    async with Hub(endpoint=sys.argv[1], cache_dir=sys.argv[2], max_connections=4, max_bytes_per_second={rate}) as hub:
        await hub.prefetch("org/big")
anyio.run(main)
"""

_NO_FLOCK = """
import fcntl
fcntl.flock = lambda *_: None
"""

# Kills the process right before its nth system call, from the one that publishes the weights on.
_KILL_AT = """
left = int(os.environ["KILL_AT"])
def hook(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.symlink", "open") and any("models--" in str(a) for a in arguments[:2]):
        if left == 0: os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
sys.addaudithook(hook)
"""


@pytest.fixture
def weights(hub_root: Path) -> bytes:
    directory = hub_root / "org/big"
    directory.mkdir(parents=True)
    content = os.urandom(SIZE)
    (directory / "model.safetensors").write_bytes(content)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (directory / "tokenizer_config.json").write_text("{}")
    return content


def start(hub: HubServer, cache: Path, *, setup: str = "", rate: float | None = None, **environment: str) -> Any:
    code = _CHILD.format(setup=setup, rate=rate)
    return subprocess.Popen(
        [sys.executable, "-c", code, hub.url, str(cache)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(child: Any) -> None:
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 0, stderr.decode()


def sent(hub: HubServer) -> int:
    return sum(request.sent for request in hub.requests if request.path.startswith("/cdn/"))


def check(cache: Path, weights: bytes) -> None:
    (found,) = cache.glob("models--*/snapshots/*/model.safetensors")
    assert found.read_bytes() == weights
    assert not list(cache.rglob("*.incomplete"))


def wait_for_bytes(hub: HubServer, least: int) -> None:
    deadline = time.monotonic() + 30
    while sent(hub) < least and time.monotonic() < deadline:
        time.sleep(0.005)


def wait_for_a_block(cache: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if any(any(path.read_bytes()[HEADER_SIZE:]) for path in cache.rglob("*.map.incomplete")):
            return
        time.sleep(0.005)


def test_killed_again_and_again(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """After each SIGKILL at most connections x 4 MiB are fetched again."""
    kills = 0
    for _ in range(4):
        child = start(hub, tmp_path / "cache", rate=12e6)
        wait_for_bytes(hub, sent(hub) + random.randrange(1, 2 * BLOCK))
        time.sleep(random.uniform(0, 0.05))
        if child.poll() is None:
            child.kill()
            kills += 1
        child.communicate()
    finish(start(hub, tmp_path / "cache"))
    check(tmp_path / "cache", weights)
    # The server counts what it hands to the socket: what a killed client never read is in it.
    assert sent(hub) <= SIZE + kills * CONNECTIONS * BLOCK


def test_one_of_two_is_killed(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """The other takes over what the dead one has, within seconds, and fetches little again."""
    first = start(hub, tmp_path / "cache", rate=12e6)
    wait_for_bytes(hub, 2 * BLOCK)
    second = start(hub, tmp_path / "cache")
    time.sleep(0.05)
    first.kill()
    first.communicate()
    finish(second)
    check(tmp_path / "cache", weights)
    assert sent(hub) <= SIZE + CONNECTIONS * BLOCK


def test_two_processes_fetch_each_byte_once(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """Two that want one model at once share the work by the lock: no byte crosses the network twice."""
    children = [start(hub, tmp_path / "cache") for _ in range(2)]
    for child in children:
        finish(child)
    check(tmp_path / "cache", weights)
    assert sent(hub) == SIZE


def test_beside_the_official_client(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """It holds the same locks: both end with the same snapshot, whoever comes first."""
    code = f"from huggingface_hub import snapshot_download as s; s('org/big', endpoint={hub.url!r}, cache_dir={str(tmp_path / 'cache')!r})"
    theirs = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finish(start(hub, tmp_path / "cache"))
    finish(theirs)
    check(tmp_path / "cache", weights)
    assert sent(hub) == SIZE


def test_where_locks_do_not_work(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """With flock a no-op two processes may both fetch, and still end with the right bytes."""
    children = [start(hub, tmp_path / "cache", setup=_NO_FLOCK) for _ in range(2)]
    for child in children:
        finish(child)
    (found,) = (tmp_path / "cache").glob("models--*/snapshots/*/model.safetensors")
    assert found.read_bytes() == weights


def test_killed_between_any_two_steps(hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """Killed before its nth file operation, the cache is right after the next run, and nothing is left over."""
    directory = hub_root / "org/big"
    directory.mkdir(parents=True)
    content = os.urandom(10_000)
    (directory / "model.safetensors").write_bytes(content)
    (directory / "config.json").write_text("{}")
    cache = tmp_path / "cache"
    killed = 0
    for count in range(0, 60, 2):
        child = start(hub, cache, setup=_KILL_AT, KILL_AT=str(count))
        child.communicate(timeout=60)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        killed += 1
        for found in cache.glob("models--*/snapshots/*/model.safetensors"):
            assert found.read_bytes() == content
        for blob in cache.glob("models--*/blobs/" + "?" * 64):
            assert blob.read_bytes() == content
    assert killed >= 5
    finish(start(hub, cache))
    check(cache, content)


def test_another_host_is_believed_to_live_for_a_minute(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """A partial whose map names another host is left alone, and adopted after sixty seconds of silence."""
    setup = "import platform; platform.node = lambda: 'elsewhere'"
    for aged in (False, True):
        cache = tmp_path / str(aged)
        hub.clear()
        child = start(hub, cache, setup=setup, rate=15e6)
        wait_for_a_block(cache)
        child.kill()
        child.communicate()
        if aged:
            for path in cache.rglob("*.incomplete"):
                os.utime(path, (time.time() - 61, time.time() - 61))
        hub.clear()
        finish(start(hub, cache))
        (found,) = cache.glob("models--*/snapshots/*/model.safetensors")
        assert found.read_bytes() == weights
        assert (sent(hub) == SIZE) is not aged, (aged, sent(hub))


def test_removing_the_repository_in_mid_download(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """`hf cache rm` meanwhile: a clear error or success, and the next run is right."""
    import shutil

    cache = tmp_path / "cache"
    child = start(hub, cache, rate=12e6)
    wait_for_bytes(hub, 2 * BLOCK)
    shutil.rmtree(cache / "models--org--big")
    _, stderr = child.communicate(timeout=60)
    if child.returncode:
        assert b"yaie_async.core.errors." in stderr
    finish(start(hub, cache))
    check(cache, weights)


# Cancelling


async def _by_timeout(cache: Path, hub: HubServer) -> None:
    async with Hub(endpoint=hub.url, cache_dir=cache) as one:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await one.prefetch("org/big")


async def _twice(cache: Path, hub: HubServer) -> None:
    async def fetch() -> None:
        async with Hub(endpoint=hub.url, cache_dir=cache) as one:
            await one.prefetch("org/big")

    task = asyncio.ensure_future(fetch())
    await asyncio.sleep(0.3)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _by_scope(cache: Path, hub: HubServer) -> None:
    async with Hub(endpoint=hub.url, cache_dir=cache) as one:
        with anyio.move_on_after(0.3):
            await one.prefetch("org/big")


WAYS = [
    pytest.param(way, loop, id=f"{way.__name__.strip('_')}-{loop}")
    for way in (_by_timeout, _twice, _by_scope)
    for loop in ("asyncio", "uvloop", "trio")
    if loop != "trio" or way is _by_scope
]


@pytest.mark.parametrize("where", [Stall(-1), Stall(0), Stall(1000)], ids=["head", "first-byte", "body"])
@pytest.mark.parametrize(("way", "loop"), WAYS)
def test_cancelling_against_a_silent_server(
    way: Any, loop: str, where: Stall, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """Control comes back at once; no thread, no descriptor and no lock stays, and the next run goes on."""
    hub.faults.add(where, path="^/cdn/", times=None)
    backend, options = ("trio", {}) if loop == "trio" else ("asyncio", {"use_uvloop": loop == "uvloop"})

    def ours() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith("yaie_async")}

    before = time.monotonic()
    anyio.run(way, tmp_path / "cache", hub, backend=backend, backend_options=options)
    took = time.monotonic() - before
    deadline = time.monotonic() + 5
    while ours() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not ours()
    assert took < 2, took
    descriptors = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
    assert not [name for name in descriptors if "models--org--big" in name]
    hub.faults.clear()
    finish(start(hub, tmp_path / "cache"))
    check(tmp_path / "cache", weights)


def _is_link(fd: str) -> bool:
    try:
        os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return True


def test_ctrl_c_twice(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """A script that is interrupted against a silent server ends at once, and the next one goes on."""
    hub.faults.add(Stall(1000), path="^/cdn/", times=None)
    child = start(hub, tmp_path / "cache")
    wait_for_bytes(hub, 1000)
    before = time.monotonic()
    child.send_signal(signal.SIGINT)
    time.sleep(0.05)
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=20)
    assert time.monotonic() - before < 3
    assert b"KeyboardInterrupt" in stderr
    hub.faults.clear()
    finish(start(hub, tmp_path / "cache"))
    check(tmp_path / "cache", weights)
