"""Fixtures for the loader's tests: models, made once per worker process, and loads that are held."""

import json
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support import models
from tests.support.faults import Gate
from tests.support.hub import HubServer
from tests.support.waiting import until
from yaie_async import ModelLoader
from yaie_async.core.tasks import task_group
from yaie_async.fetch import metadata, retry

Put = Callable[..., Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the directory of a tiny model, made by a function of tests/support/models.py."""
    top = tmp_path_factory.mktemp("made")

    def make(kind: str) -> Path:
        directory = top / kind
        if not directory.exists():
            directory.mkdir()
            getattr(models, kind)(directory)
        return directory

    return make


@pytest.fixture
def put(hub_root: Path, made: Callable[[str], Path]) -> Put:
    """Copies a tiny model to the hub: `put("org/name", "llama")`."""

    def copy(name: str, kind: str = "llama") -> Path:
        return Path(shutil.copytree(made(kind), hub_root / name))

    return copy


@pytest.fixture
def put_fake(hub_root: Path) -> Put:
    """Writes a model of random bytes to the hub, for tests that only fetch."""

    def write(name: str, size: int = 9 << 20) -> Path:
        directory = hub_root / name
        directory.mkdir(parents=True)
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "tokenizer.json").write_text('{"model": {}}')
        (directory / "tokenizer_config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(os.urandom(size))
        return directory

    return write


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the waits between attempts; the policy has its own tests."""
    policy = retry.RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.02)
    monkeypatch.setattr(metadata, "IMPATIENT", replace(policy, attempts=2))
    monkeypatch.setattr(retry, "RetryPolicy", lambda: policy)


@pytest.fixture
def load_held(readers: Callable[..., int], why_stock: Callable[[], list[str]]) -> Callable[..., Awaitable[Any]]:
    """Load a model whose last bytes are withheld until its build waits for them or has ended."""

    async def load_held(gate: Gate, loader: ModelLoader) -> Any:
        got: list[Any] = []

        async def load() -> None:
            got.append(await loader.load_model())

        async with task_group() as group:
            group.start_soon(load)
            await until(lambda: readers() or why_stock())
            await anyio.sleep(0.02)
            assert not got
            gate.open()
        return got[0]

    return load_held


@pytest.fixture
def why_stock(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the reasons in the log for builds from a finished snapshot."""
    caplog.set_level(logging.INFO, logger="yaie_async")

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if "finished snapshot" in record.getMessage()]

    return said


async def prefetch(hub: HubServer, cache: Path, model: str = "org/big", **options: Any) -> Path:
    """Fetch a model from the hub into a cache, and return its snapshot."""
    return await ModelLoader(model, endpoint=hub.url, cache_dir=cache, **options).prefetch()
