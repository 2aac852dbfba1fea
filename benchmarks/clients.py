"""The clients, each in a process of its own: `python -m benchmarks.clients NAME ENDPOINT TARGET` prints JSON."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import anyio

from benchmarks.site import MODEL


async def _watched(work: Callable[[], Any]) -> dict[str, float]:
    """Run with a heartbeat of 2 ms: the longest time the loop was away, and the CPU time of its thread."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await anyio.sleep(0.002)
            longest = max(longest, time.perf_counter() - before - 0.002)

    before = time.thread_time()
    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        await work()
        group.cancel_scope.cancel()
    return {"loop_cpu": time.thread_time() - before, "stall": longest}


def us(endpoint: str, target: Path, *, verify: bool = True, connections: int = 8) -> dict[str, float]:
    from yaie_async import Hub

    async def fetch() -> None:
        async with Hub(endpoint=endpoint, cache_dir=target, verify=verify, max_connections=connections) as hub:
            await hub.prefetch(MODEL)

    return anyio.run(_watched, fetch)


def us_unverified(endpoint: str, target: Path) -> dict[str, float]:
    return us(endpoint, target, verify=False)


def us_one_connection(endpoint: str, target: Path) -> dict[str, float]:
    return us(endpoint, target, connections=1)


def official(endpoint: str, target: Path) -> dict[str, float]:
    from huggingface_hub import snapshot_download

    snapshot_download(MODEL, endpoint=endpoint, cache_dir=target)
    return {}


def hf_transfer(endpoint: str, target: Path) -> dict[str, float]:
    import hf_transfer as peer

    for name, url in _shards(endpoint):
        peer.download(url, str(target / name), max_files=8, chunk_size=10_000_000)
    return {}


def httpx_ranges(endpoint: str, target: Path) -> dict[str, float]:
    """Stock httpx with eight ranges a file, written where they belong: what one would write by hand."""
    import httpx

    async def fetch() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            for name, url in _shards(endpoint):
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

    return anyio.run(_watched, fetch)


def curl(endpoint: str, target: Path) -> dict[str, float]:
    import subprocess

    arguments = ["curl", "-sS", "--parallel", "--parallel-max", "8", "--cacert", os.environ["SSL_CERT_FILE"]]
    for name, url in _shards(endpoint):
        arguments += ["-o", str(target / name), url]
    subprocess.run(arguments, check=True)
    return {}


def aria2(endpoint: str, target: Path) -> dict[str, float]:
    import subprocess

    wanted = "".join(f"{url}\n  out={name}\n" for name, url in _shards(endpoint))
    arguments = ["aria2c", "-q", "-x8", "-s8", "-j5", "-k4M", "-i-", "-d", str(target), "--file-allocation=none"]
    subprocess.run([*arguments, f"--ca-certificate={os.environ['SSL_CERT_FILE']}"], input=wanted, text=True, check=True)
    return {}


def _shards(endpoint: str) -> list[tuple[str, str]]:
    """Names and signed URLs of the shards: peers that know no Hub are spared the way to them."""
    import httpx

    files = httpx.get(f"{endpoint}/api/models/{MODEL}").json()["siblings"]
    names = [file["rfilename"] for file in files if file["rfilename"].endswith(".safetensors")]
    found = []
    for name in names:
        answer = httpx.head(f"{endpoint}/{MODEL}/resolve/main/{name}")
        found.append((name, urljoin(endpoint, answer.headers["location"])))
    return found


CLIENTS: dict[str, Callable[[str, Path], dict[str, float]]] = {
    "us, verified": us,
    "us, not verified": us_unverified,
    "us, one connection": us_one_connection,
    "snapshot_download": official,
    "hf_transfer": hf_transfer,
    "curl --parallel": curl,
    "aria2c -x8": aria2,
    "httpx, 8 ranges": httpx_ranges,
}

if __name__ == "__main__":
    name, endpoint, target = sys.argv[1:]
    Path(target).mkdir(parents=True)

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    started, before = time.perf_counter(), cpu()
    told = CLIENTS[name](endpoint, Path(target))
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": cpu() - before, **told}))
