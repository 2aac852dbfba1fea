"""Tests of files that list models: valid lines, and errors for bad ones."""

from pathlib import Path

import pytest

from yaie_async import InvalidArgumentError
from yaie_async.cli.models_file import read_models


@pytest.mark.parametrize(
    ("text", "models"),
    [
        (b"", []),
        (b"\xef\xbb\xbfgpt2\r\norg/name\r\n", ["gpt2", "org/name"]),
        (b"# all\n  # of it\n\n \t\n", []),
        (b"gpt2@main # the small one\norg/a@refs/pr/1", ["gpt2@main", "org/a@refs/pr/1"]),
        (b"./here@home\n~/there\n/abs olute", ["./here@home", "~/there", "/abs olute"]),
    ],
)
def test_lines(text: bytes, models: list[str], tmp_path: Path) -> None:
    """Each line is a model; comments, blank lines, a byte order mark and CRLF are skipped."""
    (tmp_path / "models.txt").write_bytes(text)
    assert read_models(tmp_path / "models.txt") == models


@pytest.mark.parametrize(
    "line",
    ["gpt2 gpt2-medium", "org/name@", "org/na me", "a/b/c", "gpt2@../x", "gpt2#x", "-m", "https://x/y", "org//x"],
)
def test_bad_lines(line: str, tmp_path: Path) -> None:
    """The error names the file, the line number and the format of a line."""
    (tmp_path / "models.txt").write_text(f"# first\ngpt2\n{line}\n")
    with pytest.raises(InvalidArgumentError, match=r"models\.txt, line 3: .*Write one model per line"):
        read_models(tmp_path / "models.txt")


def test_what_is_no_text(tmp_path: Path) -> None:
    """The error for a binary file, a directory or a missing file says that it can't be read."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("binary", "missing", "."):
        with pytest.raises(InvalidArgumentError, match="can't be read as a list of models"):
            read_models(tmp_path / name)
