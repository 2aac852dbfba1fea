"""Tiny checkpoints, each written once per session."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import models


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
