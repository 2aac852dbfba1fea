"""Reads of files that others may have put into a cache."""

import errno
import os
from pathlib import Path

import pytest

from yaie_async.store.diskio import open_regular, read_regular


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    """Anything else is an error at once: a FIFO would block for ever, a device might never end."""
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)


def test_a_link_is_followed_only_where_it_may_be(tmp_path: Path) -> None:
    """Snapshots are made of links, and partials never."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"x"
    with pytest.raises(OSError, match="symbolic link") as caught:
        open_regular(tmp_path / "link", follow=False)
    assert caught.value.errno == errno.ELOOP


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte costs nothing."""
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than 268,435,456 bytes"):
        read_regular(tmp_path / "sparse")
