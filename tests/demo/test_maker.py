"""The process that makes the demo's model."""

import sys
from pathlib import Path

import pytest

from tests.demo.packages import write_gguf
from tests.support.terminal import open_terminal
from yaie_async.core.errors import LoaderError
from yaie_async.demo import maker


def test_a_conversion_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error carries the last line of the process that failed, and nothing half-made is kept."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LoaderError, match="could not be made: exit status 1"):
        maker.make(["random"], tmp_path / "models" / "made", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_bar_shows_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, with the number of tensors that are converted; the tqdm bars of transformers give it."""
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("COLUMNS", "200")
    with open_terminal() as terminal:
        monkeypatch.setattr(sys, "stderr", terminal.stream)
        maker.make(["smollm2", str(tmp_path / "tiny.gguf")], tmp_path / "made", tmp_path)
    shown = terminal.text
    assert "Converting the tokenizer" in shown
    assert "12/12" in shown
    assert "Done" in shown
    assert (tmp_path / "made" / "config.json").is_file()
