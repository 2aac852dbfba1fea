"""The measured clients, one process each: `python -m benchmarks.clients NAME ENDPOINT plain|watch DIRECTORY`.

The function of a client prepares it (imports, signed URLs for clients without Hub support) and returns the work that
is measured.
"""

import importlib
import inspect
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import anyio

from benchmarks.heartbeat import heartbeat
from benchmarks.site import MODEL

Work = Callable[[], Any]


def us(endpoint: str, target: Path, *, verify: bool = True, connections: int = 8) -> Work:
    import huggingface_hub.utils  # noqa: F401 - imported by a Hub when it opens

    import yaie_async.loader.files  # noqa: F401
    from yaie_async import Hub

    async def work() -> None:
        async with Hub(endpoint=endpoint, cache_dir=target, verify=verify, max_connections=connections) as hub:
            await hub.prefetch(MODEL)

    return work


def official(endpoint: str, target: Path) -> Work:
    from huggingface_hub import snapshot_download

    return lambda: snapshot_download(MODEL, endpoint=endpoint, cache_dir=target)


def hf_transfer(endpoint: str, target: Path) -> Work:
    peer = importlib.import_module("hf_transfer")  # untyped, and optional here
    shards = _shards(endpoint)

    def work() -> None:
        for name, url in shards:
            peer.download(url, str(target / name), max_files=8, chunk_size=10_000_000)

    return work


def httpx_ranges(endpoint: str, target: Path) -> Work:
    """Stock httpx with eight ranges per file, each written at its offset: a hand-written client."""
    import httpx

    shards = _shards(endpoint)

    async def work() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            for name, url in shards:
                size = int((await client.head(url)).headers["content-length"])
                fd = os.open(target / name, os.O_RDWR | os.O_CREAT, 0o666)
                step = -(-size // 8)

                async def part(url: str, fd: int, start: int, stop: int) -> None:
                    async with client.stream("GET", url, headers={"range": f"bytes={start}-{stop - 1}"}) as response:
                        async for chunk in response.aiter_raw():
                            os.pwrite(fd, chunk, start)
                            start += len(chunk)

                async with anyio.create_task_group() as group:
                    for start in range(0, size, step):
                        group.start_soon(part, url, fd, start, min(size, start + step))
                os.close(fd)

    return work


def curl(endpoint: str, target: Path) -> Work:
    arguments = ["curl", "-sSf", "--parallel", "--parallel-max", "8", "--cacert", os.environ["SSL_CERT_FILE"]]
    for name, url in _shards(endpoint):
        arguments += ["-o", str(target / name), url]
    return lambda: subprocess.run(arguments, check=True)


def aria2(endpoint: str, target: Path) -> Work:
    wanted = "".join(f"{url}\n  out={name}\n" for name, url in _shards(endpoint))
    arguments = [
        "aria2c",
        "-q",
        "-x8",
        "-s8",
        "-j5",
        "-k4M",
        "-i-",
        "-d",
        str(target),
        "--file-allocation=none",
    ]
    arguments.append(f"--ca-certificate={os.environ['SSL_CERT_FILE']}")
    return lambda: subprocess.run(arguments, input=wanted, text=True, check=True)


def _shards(endpoint: str) -> list[tuple[str, str]]:
    """Return names and signed URLs of the shards, which clients without Hub support need before they are measured."""
    import httpx

    files = httpx.get(f"{endpoint}/api/models/{MODEL}").json()["siblings"]
    names = [file["rfilename"] for file in files if file["rfilename"].endswith(".safetensors")]
    found = []
    for name in names:
        response = httpx.head(f"{endpoint}/{MODEL}/resolve/main/{name}")
        found.append((name, urljoin(endpoint, response.headers["location"])))
    return found


def _us(**options: Any) -> Callable[[str, Path], Work]:
    return lambda endpoint, target: us(endpoint, target, **options)


CLIENTS: dict[str, Callable[[str, Path], Work]] = {
    "us, verified": us,
    "us, not verified": _us(verify=False),
    "snapshot_download": official,
    "hf_transfer": hf_transfer,
    "curl --parallel": curl,
    "aria2c -x8 -s8": aria2,
    "httpx, 8 ranges": httpx_ranges,
    **{f"us, {count} connections": _us(connections=count) for count in (1, 2, 4, 8, 16)},
}
ASYNC = frozenset({"us, verified", "us, not verified", "httpx, 8 ranges"})  # clients that run on an event loop


async def _in_loop(work: Callable[[], Awaitable[object]], *, watch: bool) -> dict[str, float]:
    """Return the longest stall with `watch`, else the CPU time of the loop's thread, to which a heartbeat would add."""
    if watch:
        async with heartbeat() as seen:
            await work()
        return {"stall": seen.figures()["all longest"]}
    before = time.thread_time()
    await work()
    return {"loop_cpu": time.thread_time() - before}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _main(name: str, endpoint: str, mode: str, target: str) -> None:
    work = CLIENTS[name](endpoint, Path(target))
    measured: dict[str, float] = {}
    started, before = time.perf_counter(), _cpu()
    if inspect.iscoroutinefunction(work):
        measured = anyio.run(lambda: _in_loop(work, watch=mode == "watch"))
    else:
        work()
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": _cpu() - before, **measured}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
