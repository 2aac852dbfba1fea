"""A test for leaks of threads, descriptors, locks and memory in a process that loads and cancels often."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import models
from tests.support.hub import HubServer

_CHILD = """
import ctypes, fcntl, gc, glob, json, os, random, shutil, sys, threading, urllib.parse
import anyio
import yaie_async.fetch.http
from yaie_async import ModelLoader
url, top = sys.argv[1:]

async def state():
    with anyio.fail_after(100):  # what a cancel could not interrupt, an import or a build, ends by itself
        while any(thread.name.startswith("yaie_async") for thread in threading.enumerate()):
            await anyio.sleep(0.01)
    await anyio.sleep(0.05)  # the system's side of a thread ends a little later than Python's
    urllib.parse.clear_cache()  # the last URLs, up to a number: each load has one that is signed anew
    yaie_async.fetch.http._parsed.cache_clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    anonymous = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
        "kilobytes": int(anonymous),
    }

async def once(kind, number):
    cache = os.path.join(top, "warm" if kind == "warm" else f"cold{number}")
    loader = ModelLoader("org/name", endpoint=url, cache_dir=cache, on_progress=lambda _: None)
    if kind == "cancel":
        with anyio.move_on_after(random.uniform(0, 0.12)):
            await loader.load()
        for path in glob.glob(os.path.join(cache, ".locks", "*", "*")):
            with open(path, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        await loader.load()
    if kind != "warm":
        shutil.rmtree(cache, ignore_errors=True)

async def main():
    for number in range(30):
        await once(("cold", "warm", "cancel")[number % 3], number)
    before = await state()
    for number in range(200):
        await once(("cold", "warm", "cancel")[number % 3], number)
    print(json.dumps([before, await state()]))

anyio.run(main)
"""


@pytest.mark.timeout(240)
def test_two_hundred_loads_and_cancels(hub_root: Path, tmp_path: Path) -> None:
    """After a warm-up, 200 cold, warm and cancelled loads leave nothing behind."""
    directory = hub_root / "org/name"
    directory.mkdir(parents=True)
    models.llama(directory, hidden=128)
    assert (directory / "model.safetensors").stat().st_size > 500_000
    # One arena: with several, the amount of released memory depends on the arena that a short thread gets.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    with HubServer(hub_root) as hub:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, hub.url, str(tmp_path / "caches")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    # Our threads have ended, since the child waits for them; torch's OpenMP keeps a varying number of its own.
    assert after["threads"] < before["threads"] + 20  # less than one per ten loads
    assert after["descriptors"] <= before["descriptors"]
    assert after["objects"] < before["objects"] + 200  # less than one per load
    # transformers itself leaks 1.5 kB per load; a leaked model would be 500 kB or more.
    assert after["kilobytes"] < before["kilobytes"] + 200 * 20
