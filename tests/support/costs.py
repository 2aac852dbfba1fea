"""The costs of processes that fetch a model: bytes from the hub, and CPU time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests.support.hub import HubServer


def sent_by_file(hub: HubServer) -> Counter[str]:
    """Return the bytes of bodies that the hub has sent, by file name."""
    sent: Counter[str] = Counter()
    for request in hub.requests:
        if request.method == "GET" and ("/cdn/" in request.path or "/resolve/" in request.path):
            sent[Path(request.path).name] += request.sent
    return sent


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def cpu_seconds(pids: Iterable[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(one.user + one.system for one in times))
