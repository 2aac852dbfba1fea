"""Killed at any moment: the next run goes on, fetches little again, and never links a wrong byte."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.fetch.fetching import fetch, sent
from tests.support.faults import Request
from tests.support.hub import HubServer
from yaie_async.store.blockmap import BLOCK, HEADER_SIZE, decode

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

# For each n: from the moment that the weights are put on the disk, killed right before the nth step. Forks, as most of
# a process is its imports.
_KILL_AT = """
import os, signal, sys, threading
count, steps, publisher = 0, [], None
def before(name):
    real = getattr(os, name)
    def step(*arguments, **options):
        global publisher
        here = threading.current_thread()
        if not steps and name == "fdatasync" and os.fstat(arguments[0]).st_size == 10_000:
            steps.append("")
            publisher = here
        if steps and (here is publisher or here.name == "yaie_async link"):  # not those of config.json beside it
            if len(steps) == count + 1:
                os.write(1, name.encode() + b"\\n")
                os.kill(os.getpid(), signal.SIGKILL)
            steps.append(name)
        return real(*arguments, **options)
    setattr(os, name, step)
for each in ("fdatasync", "replace", "rename", "unlink", "symlink", "fsync", "mkdir", "utime", "pwrite"):
    before(each)
import anyio
import yaie_async.fetch.snapshot, yaie_async.loader.display, yaie_async.loader.files, yaie_async.loader.model_loader
from yaie_async import Hub
async def main():
    async with Hub(endpoint=sys.argv[1], cache_dir=os.path.join(sys.argv[2], str(count))) as hub:
        await hub.prefetch("org/big")
for count in range(60):
    child = os.fork()
    if not child:
        anyio.run(main)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        sys.exit(status)
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


Start = Callable[..., Any]


@pytest.fixture
def run_code() -> Iterator[Start]:
    """Starts processes that run some code; what still runs at the end is killed."""
    with ExitStack() as children:

        def run(code: str, *arguments: str) -> Any:
            pipe = subprocess.PIPE
            child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=pipe, stderr=pipe)
            children.enter_context(child)
            children.callback(child.kill)
            return child

        yield run


@pytest.fixture
def start(hub: HubServer, run_code: Start) -> Start:
    """Starts processes that fetch `org/big` into a cache."""

    def run(cache: Path, *, setup: str = "", rate: float | None = None) -> Any:
        return run_code(_CHILD.format(setup=setup, rate=rate), hub.url, str(cache))

    return run


def finish(child: Any) -> None:
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 0, stderr.decode()


def check(cache: Path, weights: bytes) -> None:
    (found,) = cache.glob("models--*/snapshots/*/model.safetensors")
    assert found.read_bytes() == weights
    assert not list(cache.rglob("*.incomplete"))


def wait_for_bytes(hub: HubServer, least: int) -> None:
    deadline = time.monotonic() + 30
    while sent(hub) < least and time.monotonic() < deadline:
        time.sleep(0.005)


def recorded(cache: Path) -> int:
    """Bytes of the weights that a map says are there; all of them once they are published."""
    while True:
        found = [SIZE] if list(cache.glob("models--*/blobs/" + "?" * 64)) else [0]
        try:
            for path in cache.glob("models--*/blobs/*.map.incomplete"):
                raw = path.read_bytes()
                header, state = decode(raw, path.name.split(".")[0]) or (None, bytearray())
                if header is not None and header.size == SIZE:
                    slots = header.decode_slots(raw[HEADER_SIZE + header.blocks :], state).values()
                    found.append(header.recorded_bytes(state) + sum(slot.position % BLOCK for slot in slots))
        except FileNotFoundError:  # published or claimed meanwhile: looked for again
            continue
        return max(found)


def written(cache: Path) -> int:
    """Bytes of the weights that are in their data file; it is sparse."""
    return max((path.stat().st_blocks * 512 for path in cache.glob("models--*/blobs/*.incomplete")), default=0)


def asked(requests: list[Request]) -> int:
    """Bytes of the weights that these requests are for: what is sent is less, or more, where one end is killed."""
    total = 0
    for request in requests:
        if request.path.startswith("/cdn/"):
            first, last = (request.range or f"bytes=0-{SIZE - 1}").removeprefix("bytes=").split("-")
            total += int(last) - int(first) + 1
    return total


def wait_for_a_block(cache: Path, *, beyond: int = 0) -> None:
    deadline = time.monotonic() + 30
    while recorded(cache) <= beyond and time.monotonic() < deadline:
        time.sleep(0.005)


def test_killed_again_and_again(hub: HubServer, start: Start, weights: bytes, tmp_path: Path) -> None:
    """After each SIGKILL 256 KiB a connection are lost of what was written at most, and all else is never asked again."""
    cache, held = tmp_path / "cache", 0
    for _ in range(4):
        child = start(cache, rate=12e6)
        wait_for_bytes(hub, sent(hub) + random.randrange(1, 2 * BLOCK))
        time.sleep(random.uniform(0, 0.05))
        child.kill()
        child.communicate()
        assert held <= recorded(cache), "what one had is not thrown away by the next"
        held = recorded(cache)
        assert written(cache) - held <= CONNECTIONS * ((256 << 10) + 4096)  # the disk counts whole pages
    before = len(hub.requests)
    finish(start(cache))
    check(cache, weights)
    assert asked(hub.requests[before:]) == SIZE - held


def test_one_of_two_is_killed(hub: HubServer, start: Start, weights: bytes, tmp_path: Path) -> None:
    """The other takes over what the dead one has, within seconds, and asks for none of it again."""
    cache = tmp_path / "cache"
    first = start(cache, rate=12e6)
    while recorded(cache) < 2 * BLOCK and first.poll() is None:
        time.sleep(0.005)
    second = start(cache)
    time.sleep(0.05)
    held = recorded(cache)
    first.kill()
    first.communicate()
    before = len(hub.requests)
    finish(second)
    check(cache, weights)
    assert asked(hub.requests[before:]) <= SIZE - held


def test_two_processes_fetch_each_byte_once(hub: HubServer, start: Start, weights: bytes, tmp_path: Path) -> None:
    """Two that want one model at once share the work by the lock: no byte crosses the network twice."""
    children = [start(tmp_path / "cache") for _ in range(2)]
    for child in children:
        finish(child)
    check(tmp_path / "cache", weights)
    assert sent(hub) == SIZE


def test_beside_the_official_client(
    hub: HubServer, start: Start, run_code: Start, weights: bytes, tmp_path: Path
) -> None:
    """It holds the same locks: both end with the same snapshot, whoever comes first."""
    code = f"from huggingface_hub import snapshot_download as s; s('org/big', endpoint={hub.url!r}, cache_dir={str(tmp_path / 'cache')!r})"
    theirs = run_code(code)
    finish(start(tmp_path / "cache"))
    finish(theirs)
    check(tmp_path / "cache", weights)
    assert sent(hub) == SIZE


def test_where_locks_do_not_work(hub: HubServer, start: Start, weights: bytes, tmp_path: Path) -> None:
    """With flock a no-op two processes may both fetch, and still end with the right bytes."""
    children = [start(tmp_path / "cache", setup=_NO_FLOCK) for _ in range(2)]
    for child in children:
        finish(child)
    (found,) = (tmp_path / "cache").glob("models--*/snapshots/*/model.safetensors")
    assert found.read_bytes() == weights


def test_killed_between_any_two_steps(hub_root: Path, hub: HubServer, run_code: Start, tmp_path: Path) -> None:
    """Killed before any step of publishing, no wrong byte has a name, and the next run leaves nothing over."""
    directory = hub_root / "org/big"
    directory.mkdir(parents=True)
    content = os.urandom(10_000)
    (directory / "model.safetensors").write_bytes(content)
    (directory / "config.json").write_text("{}")
    child = run_code(_KILL_AT, hub.url, str(tmp_path / "caches"))
    stdout, stderr = child.communicate(timeout=100)
    assert child.returncode == 0, stderr.decode()
    steps = stdout.decode().split()
    for count in range(len(steps)):
        cache = tmp_path / "caches" / str(count)
        linked = list(cache.glob("models--*/snapshots/*/model.safetensors"))
        for found in [*linked, *cache.glob("models--*/blobs/" + "?" * 64)]:
            assert found.read_bytes() == content
        # config.json is linked last: what is not whole does not look it.
        assert linked or not list(cache.glob("models--*/snapshots/*/config.json"))
        before = sent(hub)
        assert anyio.run(fetch, hub, cache) == content
        assert sent(hub) == before, "all of it was there"
    print(steps)
    assert {"replace", "unlink", "fsync", "symlink"} <= set(steps)


def test_a_container_that_is_started_again_goes_on(
    hub: HubServer, start: Start, weights: bytes, tmp_path: Path
) -> None:
    """A partial of another process namespace of this kernel is adopted at once: its owner would hold the lock."""
    setup = (
        "import dataclasses, yaie_async.store.partials as partials\n"
        "real = partials.this_process\n"
        "partials.this_process = lambda: dataclasses.replace(real(), pid_namespace='pid:[1]', host='elsewhere')\n"
    )
    child = start(tmp_path / "cache", setup=setup, rate=15e6)
    wait_for_a_block(tmp_path / "cache")
    child.kill()
    child.communicate()
    hub.clear()
    finish(start(tmp_path / "cache"))
    check(tmp_path / "cache", weights)
    assert sent(hub) < SIZE


def test_two_that_are_killed_in_turns(hub: HubServer, start: Start, weights: bytes, tmp_path: Path) -> None:
    """Whoever lives takes over all that whoever died had recorded."""
    cache, held = tmp_path / "cache", 0
    children = [start(cache, rate=12e6) for _ in range(2)]
    for turn in range(3):
        if held < SIZE:
            wait_for_a_block(cache, beyond=held)
            time.sleep(random.uniform(0, 0.3))
        victim = children[turn % 2]
        victim.kill()
        victim.communicate()
        children[turn % 2] = start(cache, rate=12e6)
        wait_for_a_block(cache)
        assert recorded(cache) >= held
        held = recorded(cache)
    for child in children:
        finish(child)
    check(cache, weights)


def test_removing_the_repository_in_mid_download(hub: HubServer, start: Start, weights: bytes, tmp_path: Path) -> None:
    """`hf cache rm` meanwhile: a clear error or success, and the next run is right."""
    cache = tmp_path / "cache"
    for after in (1, 4 * BLOCK):
        hub.clear()
        child = start(cache, rate=12e6)
        wait_for_bytes(hub, after)
        shutil.rmtree(cache / "models--org--big", ignore_errors=True)  # as the process may just make a file there
        _, stderr = child.communicate(timeout=60)
        if child.returncode:
            assert b"yaie_async.core.errors." in stderr.splitlines()[-1], stderr.decode()
        finish(start(cache))
        check(cache, weights)
        shutil.rmtree(cache)


def test_pruned_in_mid_download(hub: HubServer, start: Start, weights: bytes, tmp_path: Path) -> None:
    """`hf cache prune` of another process, again and again: no byte is fetched twice."""
    cache = tmp_path / "cache"
    child = start(cache, rate=8e6)
    for least in (BLOCK, 3 * BLOCK, 5 * BLOCK):
        wait_for_bytes(hub, least)
        for path in cache.glob("models--*/blobs/*.incomplete"):
            path.unlink(missing_ok=True)
    finish(child)
    check(cache, weights)
    assert sent(hub) == SIZE


@pytest.mark.parametrize("damage", ["garbage", "empty", "short-data", "no-data", "plain"])
def test_damaged_leftovers(damage: str, hub: HubServer, start: Start, weights: bytes, tmp_path: Path) -> None:
    """A partial that is not what it says is discarded, and an old client's is left alone and not believed."""
    cache = tmp_path / "cache"
    child = start(cache, rate=15e6)
    wait_for_a_block(cache)
    child.kill()
    child.communicate()
    (data_file,) = [path for path in cache.rglob("*.incomplete") if path.stat().st_size == SIZE]
    map_file = data_file.with_name(data_file.name.replace(".incomplete", ".map.incomplete"))
    if damage == "garbage":
        map_file.write_bytes(os.urandom(HEADER_SIZE + 7))
    elif damage == "empty":
        map_file.write_bytes(b"")
    elif damage == "short-data":
        os.truncate(data_file, 5)
    elif damage == "no-data":
        data_file.unlink()
    else:
        data_file.with_name(data_file.name.split(".")[0] + ".incomplete").write_bytes(bytes(SIZE))
    hub.clear()
    finish(start(cache))
    (found,) = cache.glob("models--*/snapshots/*/model.safetensors")
    assert found.read_bytes() == weights
    assert all(path.name.count(".") == 1 for path in cache.rglob("*.incomplete"))
    assert (sent(hub) == SIZE) is (damage != "plain")
