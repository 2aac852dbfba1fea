"""The process that makes the demo's model."""

import sys
from pathlib import Path

import pytest

from tests.demo.packages import write_gguf
from yaie_async.core.errors import LoaderError
from yaie_async.demo import maker


def test_a_conversion_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error carries the last line of the process that failed, and nothing half-made is kept."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LoaderError, match="could not be made: exit status 1"):
        maker.make(["random"], tmp_path / "models" / "made", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_bar_shows_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal, with the number of tensors that are converted; the tqdm bars of transformers give it."""
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    maker.make(["smollm2", str(tmp_path / "tiny.gguf")], tmp_path / "made", tmp_path)
    shown = capsys.readouterr().err
    assert "Converting the tokenizer" in shown
    assert "12/12" in shown
    assert "Done" in shown
    assert (tmp_path / "made" / "config.json").is_file()
