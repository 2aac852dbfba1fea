"""Checks of paths, etags and commits."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yaie_async.core.errors import UnsafeFileError
from yaie_async.core.names import check_etag, check_path, digest_kind, is_commit


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../x",
        "a/..",
        "/x",
        "//host/share",
        "\\\\host\\share",
        "\\x",
        "C:x",
        "c:\\x",
        "a\\..\\x",
        "",
        ".",
        "./x",
        "a//b",
        "a/",
        "a\0b",
        "\ud800",
    ],
)
def test_a_path_that_could_leave_its_folder_is_unsafe(path: str) -> None:
    """A path that leaves its folder on POSIX or Windows is refused, and the error names it."""
    with pytest.raises(UnsafeFileError, match="org/name") as caught:
        check_path(path, model="org/name")
    assert caught.value.file == path
    assert caught.value.model == "org/name"


@pytest.mark.parametrize("path", ["x", "a/b.json", "...", "..x", "a/.hidden", "with space #1?.json", "日本.json"])
def test_an_ordinary_path_passes(path: str) -> None:
    """Odd but harmless names are accepted."""
    check_path(path, model="org/name")


@given(st.text(alphabet="ab./\\:~\0 C", max_size=12) | st.text(max_size=20))
@example("a/b")
def test_a_path_that_passes_stays_below_its_folder(path: str) -> None:
    """Any accepted path stays below the folder that it is joined to, by the rules of both systems."""
    try:
        check_path(path, model="m")
    except UnsafeFileError:
        return
    top = Path("/top/folder")
    # normpath alone accepts `a/../b`, so the parts are checked as well.
    joined = top.joinpath(*path.split("/"))
    assert joined.is_relative_to(top)
    assert joined != top
    assert ".." not in joined.parts
    windows = PureWindowsPath("C:/top/folder") / path
    assert windows.is_relative_to("C:/top/folder")
    assert ".." not in windows.parts


@pytest.mark.parametrize("etag", ["", ".", "..", "a/b", "../x", "a\\b", "a\0", "\ud800", "x" * 201])
def test_an_etag_that_is_no_plain_name_is_unsafe(etag: str) -> None:
    """An etag that can't name a blob is refused, and the error names file and model."""
    with pytest.raises(UnsafeFileError, match=r"a\.json of org/name"):
        check_etag(etag, model="org/name", file="a.json")


def test_an_ordinary_etag_passes() -> None:
    """Digests and the unusual etags of mirrors are accepted."""
    for etag in ("0" * 40, "f" * 64, "5d41402a-3", 'W"x'):
        check_etag(etag, model="m", file="f")


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("0" * 40, True),
        ("abcdef0123" * 4, True),
        ("ABCDEF0123" * 4, False),
        ("0" * 39, False),
        ("main", False),
        ("0" * 64, False),
    ],
)
def test_a_commit_is_forty_lower_case_hex_digits(revision: str, expected: bool) -> None:
    """Commits and branches are distinguished by the rule of the official client."""
    assert is_commit(revision) is expected


def test_an_etag_is_a_digest_by_its_length() -> None:
    """64 hex digits are sha256, 40 are git's sha1, and any other etag is no digest."""
    assert digest_kind("0" * 64) == "sha256"
    assert digest_kind("0" * 40) == "git-sha1"
    assert digest_kind("0" * 41) is None
    assert digest_kind("g" * 40) is None
    assert digest_kind("A" * 64) == "sha256"
    assert digest_kind(None) is None
