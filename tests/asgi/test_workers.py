"""Tests of eight workers of a real server that warm up with one empty cache."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.asgi.conftest import Put
from tests.support.command import Command
from tests.support.costs import cpu_seconds, sent_by_file, sizes
from tests.support.faults import StallAt
from tests.support.hub import HubServer
from tests.support.web import GUNICORN, UVICORN, WebServer, web_server
from yaie_async.store.claims import resumable_bytes

# Each worker logs what it does, and reads all its weights after the load, as serving would.
_APP = """\
import asyncio
import logging
import os
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.routing import Mount

from yaie_async import Hub, ModelLoader, warm_imports
from yaie_async.asgi import Warmup

logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
warmup = Warmup(chat=ModelLoader("org/name", hub=Hub(max_connections=2)))
if os.environ.get("PRELOAD"):
    anyio.run(warm_imports)


async def read_weights():
    model = await warmup["chat"]
    read = sum(int(weight.count_nonzero()) for weight in model.parameters())
    logging.info("has read %d weights", read)


@asynccontextmanager
async def lifespan(app):
    async with warmup:
        reading = asyncio.create_task(read_weights())
        yield
        reading.cancel()


app = Starlette(lifespan=lifespan, routes=[Mount("/warmup", warmup.app)])
"""

_CONNECTIONS, _BLOCK = 2, 4 << 20
_AT = 20 << 20  # the offset at which the download stalls


@pytest.fixture
def command(hub: HubServer, tmp_path: Path, put_large: Put) -> Command:
    put_large("org/name")
    (tmp_path / "app.py").write_text(_APP)
    # On a busy machine the waiting workers may take long.
    return Command(tmp_path, hub.url, {"HF_HUB_DOWNLOAD_TIMEOUT": "60"})


def pids(server: WebServer, pattern: str) -> set[int]:
    """The pids of the workers that have logged a line that matches `pattern`."""
    return {int(line.split()[0]) for line in server.lines if re.match(r"\d+ " + pattern, line)}


def of_mapping(pid: int, path: Path) -> Counter[str]:
    """The memory that a process maps from a file, by /proc/PID/smaps: bytes by "Rss", "Pss" and so on."""
    found: Counter[str] = Counter()
    here = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            here = line.endswith(str(path))
        elif here and rest[-1:] == ["kB"]:
            found[name[:-1]] += int(rest[0]) * 1024
    return found


def share_pages(workers: set[int], blob: Path) -> None:
    """Check that all workers map their weights from the blob, with a single copy in memory."""
    told = [of_mapping(pid, blob) for pid in workers]
    size = blob.stat().st_size
    assert all(one["Rss"] > 0.9 * size for one in told), told
    assert all(one["Private_Dirty"] == one["Private_Clean"] == 0 for one in told), told
    assert sum(one["Pss"] for one in told) < 1.1 * size


@contextmanager
def official_client(command: Command) -> Iterator[subprocess.Popen[str]]:
    """The official client in a process that fetches the same model into the same cache and prints its snapshot."""
    code = "from huggingface_hub import snapshot_download; print(snapshot_download('org/name'))"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=command.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_gunicorn(hub: HubServer, command: Command) -> None:
    """One worker fetches, seven and an official client wait idle; each byte is sent once and is in memory once."""
    stall = StallAt(_AT)
    hub.faults.add(stall, path="^/cdn/", times=None)
    command.env["PRELOAD"] = "1"
    with web_server(command.home, command.environment, *GUNICORN, "-w", "8", "--preload") as server:
        server.until(lambda: len(pids(server, "org/name: waiting for another process")) == 7)
        waiting = pids(server, "org/name: waiting")
        asked = len(hub.requests)
        with official_client(command) as client:
            server.until(lambda: len(hub.requests) > asked)
            before, begin = cpu_seconds(waiting), time.monotonic()
            while time.monotonic() - begin < 1:
                time.sleep(0.05)
            idle = cpu_seconds(waiting) - before
            print(f"seven that wait take {idle:.2f} CPU-seconds a second")
            assert idle < 7 * 0.05
            stall.gate.open()
            server.until(lambda: len(pids(server, r"has read \d+ weights")) == 8)
            snapshot, _ = client.communicate(timeout=60)
        assert sent_by_file(hub) == sizes(hub.root / "org/name")
        blob = (Path(snapshot.strip()) / "model.safetensors").resolve(strict=True)
        share_pages(pids(server, "has read"), blob)
        assert len(pids(server, r"warm-up: chat \(org/name\) is ready")) == 8
        server.until(server.ready)


def test_uvicorn(hub: HubServer, command: Command) -> None:
    """When the fetching worker is killed, another continues its download within two seconds, and all become ready."""
    hub.faults.add(StallAt(_AT), path="^/cdn/", times=None)
    weights = hub.root / "org/name/model.safetensors"
    size, etag = weights.stat().st_size, hashlib.sha256(weights.read_bytes()).hexdigest()
    blobs = command.cache / "models--org--name/blobs"
    with web_server(command.home, command.environment, *UVICORN, "--workers", "8") as server:
        server.until(lambda: len(pids(server, "org/name: waiting for another process")) == 7)
        # What is before the stall is on disk, and ranges that are ahead of it.
        server.until(lambda: resumable_bytes(blobs, etag, size) >= _AT)
        # Its own line may come later than those of the workers that wait for it.
        server.until(lambda: pids(server, "org/name: downloading") - pids(server, "org/name: waiting"))
        (owner,) = pids(server, "org/name: downloading") - pids(server, "org/name: waiting")
        hub.faults.clear()
        begun = len(hub.requests)
        psutil.Process(owner).kill()
        start = time.monotonic()
        server.until(lambda: any(one.path.startswith("/cdn/") for one in hub.requests[begun:]))
        seconds = time.monotonic() - start
        print(f"another goes on after {seconds:.2f} s")
        assert seconds < 2
        # uvicorn has replaced the killed worker.
        server.until(lambda: len(pids(server, r"has read \d+ weights") - {owner}) >= 8)
        server.until(server.ready)
        assert sent_by_file(hub)["model.safetensors"] <= size + _CONNECTIONS * _BLOCK
