"""Fixtures for warm-ups of tiny models from a local hub."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import models
from tests.support.hub import HubServer
from yaie_async import ModelLoader
from yaie_async.asgi import Warmup

MakeLoader = Callable[..., ModelLoader]
Put = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny Llama with its tokenizer."""
    directory = tmp_path_factory.mktemp("tiny")
    models.llama(directory)
    return directory


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a Llama of 34 MB, whose download takes long enough to be observed."""
    directory = tmp_path_factory.mktemp("large")
    models.llama(directory, hidden=1024)
    return directory


@pytest.fixture
def put(hub_root: Path, tiny: Path) -> Put:
    """Copies the tiny model to the hub: `put("org/name")`."""
    return lambda name: Path(shutil.copytree(tiny, hub_root / name))


@pytest.fixture
def put_large(hub_root: Path, large: Path) -> Put:
    return lambda name: Path(shutil.copytree(large, hub_root / name))


@pytest.fixture
def loader(hub: HubServer, tmp_path: Path) -> MakeLoader:
    """Makes a loader for a model of the hub, with a cache in the test's folder."""

    def make(name: str = "org/name", **options: Any) -> ModelLoader:
        return ModelLoader(name, endpoint=hub.url, cache_dir=tmp_path / "cache", **options)

    return make


@asynccontextmanager
async def asked(warmup: Warmup) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the warm-up's app on this event loop, without a server."""
    transport = httpx.ASGITransport(warmup.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client
