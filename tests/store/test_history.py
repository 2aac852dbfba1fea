"""What the last imports and builds took: kept in the user's cache folder, believed within bounds, never missed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from yaie_async.store.history import Took, last_time, remember


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "yaie_async"


def test_the_last_time_is_known(folder: Path) -> None:
    """The newest time of each kind is kept, and nothing but the one file is left."""
    assert last_time("import") is None
    remember("import", Took(3.5, 2000))
    remember("build", Took(1.0, 10**12))
    remember("import", Took(2.5, 2001))
    assert (last_time("import"), last_time("build")) == (Took(2.5, 2001), Took(1.0, 10**12))
    assert [path.name for path in folder.iterdir()] == ["history.json"]


def test_the_file_is_bounded(folder: Path) -> None:
    """Of many kinds the newest are kept."""
    for number in range(80):
        remember(f"kind {number}", Took(1.0, number + 1))
    assert len(json.loads((folder / "history.json").read_text())) == 64
    assert (last_time("kind 15"), last_time("kind 16"), last_time("kind 79")) == (None, Took(1.0, 17), Took(1.0, 80))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"[" * 60_000,
        b'{"import": 3}',
        b'{"import": [1.0]}',
        b'{"import": [1.0, 2.5]}',
        b'{"import": ["1", 2]}',
        b'{"import": [-1, 2]}',
        b'{"import": [1.0, 0]}',
        b'{"import": [NaN, 2]}',
        b'{"import": [Infinity, 2]}',
        b'{"import": [1.0, ' + b"9" * 30 + b"]}",
        b'{"import": [1.0, ' + b"9" * 9000 + b"]}",
        b'{"import": [1.0, 2], "x": "' + b"x" * 70_000 + b'"}',
    ],
)
def test_garbage_is_not_believed(content: bytes, folder: Path) -> None:
    """What is no time in the file counts as unknown, and the next time replaces it."""
    folder.mkdir(parents=True)
    (folder / "history.json").write_bytes(content)
    assert last_time("import") is None
    remember("import", Took(2.0, 5))
    assert last_time("import") == Took(2.0, 5)


def test_what_is_no_file_is_not_waited_for(folder: Path) -> None:
    """A FIFO in its place holds nothing up."""
    folder.mkdir(parents=True)
    os.mkfifo(folder / "history.json")
    assert last_time("import") is None
    remember("import", Took(2.0, 5))
    assert last_time("import") == Took(2.0, 5)


def test_where_nothing_can_be_written_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that is none, or no home at all, costs the knowledge and nothing else."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember("import", Took(2.0, 5))
    assert last_time("import") is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    remember("import", Took(2.0, 5))
    assert last_time("import") is None


def test_nothing_is_written_into_another_users_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root with another user's home would make a folder that this user can't write."""
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    remember("import", Took(2.0, 5))
    assert not folder.exists()
