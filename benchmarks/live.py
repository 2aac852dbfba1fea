"""Latency of a web server while it loads a model: this process pings it every 10 ms."""

import argparse
import http.client
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.heartbeat import percentile
from benchmarks.random_llama import make_llama
from benchmarks.rounds import Rounds, draw, environment, machine, ratio, spread, table
from benchmarks.site import MODEL, Site, free_port
from benchmarks.stall import slow_site

CASES = ("blocking", "to_thread", "us")
_INTERVAL = 0.01  # seconds between pings


def main(arguments: argparse.Namespace) -> dict[str, Rounds]:
    """Print the time until ready and the latencies until then, for a cold and a warm load in a new process."""
    print(machine())
    results: dict[str, Rounds] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        models, cache = Path(scratch, "models"), Path(scratch, "hub")
        make_llama(models / MODEL, arguments.size)
        with slow_site(models, arguments.link) as (site, what):
            for _ in range(arguments.rounds):
                for mode in arguments.only:
                    for state in ("cold", "warm"):  # warm: from the cache of the cold load
                        found = results.setdefault(f"{mode}, {state}", [])
                        found.append(_one(mode, site, cache, Path(scratch, "home")))
                    shutil.rmtree(cache)
    rows = []
    for name, found in results.items():
        base = results.get(f"to_thread, {name.split(', ')[1]}")
        cells = [spread([one[key] for one in found], 1) for key in ("seconds", "p50", "p99", "longest")]
        times = [ratio(found, base, key) for key in ("seconds", "p99", "longest")]
        rows.append([name, *cells, *(f"{value:.2f}x" if value else "" for value in times)])
    rows.sort(key=lambda row: row[0].endswith("warm"))
    head = [
        "",
        "ready s",
        "p50 ms",
        "p99 ms",
        "longest ms",
        "ready/to_thread",
        "p99/to_thread",
        "longest/to_thread",
    ]
    table(
        f"Latency of a ping every 10 ms, {arguments.size} MB fp16 in 8 shards over {what}; "
        f"medians (min-max) of {arguments.rounds} interleaved rounds",
        head,
        rows,
    )
    draw(
        arguments.plot,
        f"a ping every 10 ms while a server loads {arguments.size} MB over {what}",
        "longest latency, ms",
        {row[0]: [one["longest"] for one in results[row[0]]] for row in rows},
    )
    print("latency is measured from the time at which the ping was due, so it includes waiting behind a stall")
    return results


def _one(mode: str, site: Site, cache: Path, home: Path) -> dict[str, float]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.app", mode, site.endpoint, MODEL, str(cache), str(port)]
    server = subprocess.Popen(command, env=environment(home, site))
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        _wait_for(connection, server)
        return _ping(connection)
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_for(connection: http.client.HTTPConnection, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            connection.connect()
        except ConnectionRefusedError:
            if server.poll() is not None:
                raise
            time.sleep(0.05)
        else:
            return


def _ping(connection: http.client.HTTPConnection) -> dict[str, float]:
    def ask(path: str) -> bytes:
        connection.request("GET", path)
        return connection.getresponse().read()

    for _ in range(50):  # warm up: a server's first requests are slower
        ask("/ping")
    start = time.perf_counter()
    ask("/load")
    latencies: list[float] = []
    ready = None
    # Pings that were due during a stall are sent late, not skipped: otherwise a stall would count as one slow ping.
    while (due := start + _INTERVAL * (len(latencies) + 1)) < (ready or math.inf):
        time.sleep(max(0.0, due - time.perf_counter()))
        state = ask("/ping")
        now = time.perf_counter()
        latencies.append((now - due) * 1e3)
        if state == b"x":
            raise RuntimeError("The load failed; the server printed the reason.")
        if state == b"1" and ready is None:
            ready = now
    assert ready is not None
    return {
        "seconds": ready - start,
        "p50": percentile(latencies, 0.5),
        "p99": percentile(latencies, 0.99),
        "longest": max(latencies),
    }
