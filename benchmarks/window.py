"""How long a build changes torch's default dtype, which affects `torch.zeros(1)` in other threads.

One load in a new process: `python -m benchmarks.window MODE ENDPOINT MODEL CACHE DIRECTORY`.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loading import MODES
from benchmarks.random_llama import make_llama
from benchmarks.rounds import Rounds, draw, machine, measure, spread, table
from benchmarks.site import MODEL
from benchmarks.stall import slow_site

CASES = ("us", "to_thread")
_INTERVAL = 0.001  # seconds between checks for an imported torch


def main(arguments: argparse.Namespace) -> dict[str, Rounds]:
    """Print how often and for how long the dtype is changed in a cold load over a link."""
    print(machine())
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        models = Path(scratch, "models")
        make_llama(models / MODEL, arguments.size)
        with slow_site(models, arguments.link) as (site, what):
            cases = {mode: [mode, site.endpoint, MODEL, "hub"] for mode in arguments.only}
            results = measure("benchmarks.window", cases, site, Path(scratch), arguments.rounds)
    rows = [
        [
            name,
            spread([one["seconds"] for one in found], 1),
            f"{median(one['times'] for one in found):.0f}",
            spread([one["longest"] for one in found]),
            spread([one["total"] for one in found]),
        ]
        for name, found in results.items()
    ]
    title = f"Milliseconds in which the default dtype is changed, a cold load of {arguments.size} MB over {what}"
    table(
        f"{title}; medians (min-max) of {arguments.rounds} interleaved rounds",
        ["", "load, s", "times", "longest", "in all"],
        rows,
    )
    draw(arguments.plot, title, "longest, ms", {name: [one["longest"] for one in v] for name, v in results.items()})
    return results


def _main(mode: str, endpoint: str, model: str, cache: str, directory: str) -> None:
    windows: list[float] = []  # milliseconds
    watcher = threading.Thread(target=_watch, args=(windows,), daemon=True)
    watcher.start()
    start = time.perf_counter()
    asyncio.run(_load(mode, endpoint, model, Path(directory, cache)))
    seconds = time.perf_counter() - start
    measured = {"times": len(windows), "longest": max(windows, default=0), "total": sum(windows)}
    print(json.dumps({"seconds": seconds, **measured}))


def _watch(windows: list[float]) -> None:
    """Record each change, by replacing `set_default_dtype` after the import: polling would miss short changes."""
    while not hasattr(sys.modules.get("torch"), "set_default_dtype"):
        time.sleep(_INTERVAL)
    torch: Any = sys.modules["torch"]
    original = torch.set_default_dtype
    since: float | None = None

    def recorded(dtype: Any) -> None:
        nonlocal since
        now = time.perf_counter()
        if dtype != torch.float32:  # the default of a new process
            since = since or now
        elif since is not None:
            windows.append((now - since) * 1e3)
            since = None
        original(dtype)

    torch.set_default_dtype = recorded


async def _load(mode: str, endpoint: str, model: str, cache: Path) -> None:
    await MODES[mode](endpoint, model, cache)(None)


if __name__ == "__main__":
    _main(*sys.argv[1:])
