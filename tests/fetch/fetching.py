"""A model of random bytes, a Hub that tries again at once, and what a fetch may leave behind."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.faults import Request
from tests.support.hub import HubServer
from yaie_async import Hub
from yaie_async.fetch.retry import RetryPolicy
from yaie_async.store.blockmap import BLOCK

SIZE = 4 * BLOCK + 12345
QUICK = RetryPolicy(attempts=4, first_wait=0.01, longest_wait=0.05)


def put(root: Path, size: int = SIZE, name: str = "org/big") -> bytes:
    """Put a model on the hub; return its weights."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    content = os.urandom(size)
    (directory / "model.safetensors").write_bytes(content)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (directory / "tokenizer_config.json").write_text("{}")
    return content


@asynccontextmanager
async def opened(hub: HubServer, cache: Path, *, stall: float = 10.0, **options: Any) -> AsyncIterator[Hub]:
    """A Hub that tries again at once, and gives a silent body up after `stall` seconds."""
    async with Hub(**{"endpoint": hub.url, **options}, cache_dir=cache) as one:
        one.session.policy = QUICK
        one.session.settings = dataclasses.replace(one.session.settings, stall_timeout=stall)
        yield one


async def fetch(hub: HubServer, cache: Path, **options: Any) -> bytes:
    """The weights, as a whole fetch has put them into the cache."""
    async with opened(hub, cache, **options) as one:
        snapshot = (await one.prefetch("org/big"))["org/big"]
    locks_are_free(cache)
    assert not list(cache.rglob("*.incomplete"))
    return (snapshot / "model.safetensors").read_bytes()


def locks_are_free(cache: Path) -> None:
    for lock in cache.glob(".locks/*/*"):
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def nothing_is_linked(cache: Path) -> None:
    assert not list(cache.glob("models--*/snapshots/*/model.safetensors"))
    assert not list(cache.glob("models--*/blobs/" + "?" * 64))


def bodies(hub: HubServer) -> list[Request]:
    return [request for request in hub.requests if request.path.startswith("/cdn/")]


def sent(hub: HubServer) -> int:
    return sum(request.sent for request in bodies(hub))
