"""Tiny checkpoints, each written once per session."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.model.architectures import ARCHITECTURES
from tests.model.arrivals import Arrival
from tests.support import models
from yaie_async.store import arriving_file as arriving_file_module


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the directory of a checkpoint kind of `models.FACTORIES`, "t5" or "classifier"; don't write into it."""
    root = tmp_path_factory.mktemp("checkpoints")
    factories = {**models.FACTORIES, "t5": models.t5, "classifier": models.gpt2_classifier}

    def make(name: str) -> Path:
        if not (root / name).exists():
            with contextlib.redirect_stderr(io.StringIO()):
                factories[name](root / name)
        return root / name

    return make


@pytest.fixture
def own_copy(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of a checkpoint that the test may damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(checkpoint(name), tmp_path / name))

    return copy


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page, so that a tiny model has many; and pieces that end in the middle of tensors."""
    monkeypatch.setattr(arriving_file_module, "BLOCK", 4096)
    monkeypatch.setattr(arriving_file_module, "block_count", lambda size: -(-size // 4096))
    monkeypatch.setattr("yaie_async.model.tensors._PIECE", 1000)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the directory of one of `ARCHITECTURES`; don't write into it."""
    root = tmp_path_factory.mktemp("architectures")

    def make(name: str) -> Path:
        if not (root / name).exists():
            with contextlib.redirect_stderr(io.StringIO()):
                ARCHITECTURES[name](root / name)
        return root / name

    return make


@pytest.fixture
def arrival(saved: Callable[[str], Path], tmp_path: Path) -> Callable[..., Arrival]:
    """Return a snapshot of an architecture (or of a directory) whose weights are landing."""

    def make(kind: str | Path, **options: Any) -> Arrival:
        directory = saved(kind) if isinstance(kind, str) else kind
        return Arrival(directory, tmp_path / "cache", models.unique_repo_id(directory.name), **options)

    return make


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor
