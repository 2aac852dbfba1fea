"""Tests of opening files beneath a folder, by openat2 and, where a kernel or a sandbox has none, step by step."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yaie_async.localhub import beneath
from yaie_async.localhub.beneath import READ, open_beneath

# What openat2 says where a kernel (ENOSYS) or a container's filter (EPERM) does not have it, and while folders move.
_REFUSALS = [errno.ENOSYS, errno.EPERM, errno.EAGAIN]

REFUSED = "|".join(os.strerror(code) for code in (errno.EXDEV, errno.ELOOP, errno.ENOENT, errno.ENOTDIR))


def refusing(code: int) -> Callable[..., int]:
    """A system call that fails with an errno."""

    def refuse(*_: Any) -> int:
        ctypes.set_errno(code)
        return -1

    return refuse


@pytest.fixture(params=[None, *_REFUSALS], ids=["openat2", *(errno.errorcode[code] for code in _REFUSALS)])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel answer, or refuse each openat2 with an errno."""
    if request.param is not None:
        monkeypatch.setattr(beneath, "_syscall", refusing(request.param))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files and links that stay beneath it, beside a secret and links that lead there."""
    root = tmp_path / "root"
    (root / "folder" / "deep").mkdir(parents=True)
    for place in (root / "file", root / "folder" / "file", root / "folder" / "deep" / "file"):
        place.write_text(place.relative_to(root).as_posix())
    (tmp_path / "outside").mkdir()
    for place in (tmp_path / "secret", tmp_path / "outside" / "file"):
        place.write_text("secret")
    (tmp_path / "alias").symlink_to(root)
    links: dict[str, str | Path] = {
        "link": "folder/file",
        "folder/up": "../file",
        "folder/deep/two hops": "../up",
        "linked": "folder",
        "absolute": root / "folder" / "file",
        "by alias": tmp_path / "alias" / "folder" / "file",
        "out and in": "../root/file",
        "out": "../secret",
        "out absolute": tmp_path / "secret",
        "out linked": "../outside",
        "out by hops": "folder/deep/out",
        "folder/deep/out": "../../../secret",
        "dangling": "nothing",
        "loop": "loop",
        "process": "/proc/self/cwd",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    return root


def read(root: Path, path: str) -> str:
    with os.fdopen(open_beneath(root, path, READ)) as opened:
        return opened.read()


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("file", "file"),
        ("folder/deep/file", "folder/deep/file"),
        ("link", "folder/file"),
        ("folder/up", "file"),
        ("folder/deep/two hops", "file"),
        ("linked/deep/file", "folder/deep/file"),
        ("linked/up", "file"),
        ("absolute", "folder/file"),
        ("by alias", "folder/file"),
        ("out and in", "file"),
    ],
)
def test_links_beneath_the_folder_are_followed(root: Path, path: str, text: str) -> None:
    """Whether they are relative, absolute, of folders, through several hops, or lead out and in again."""
    assert read(root, path) == text


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(
    "path",
    ["out", "out absolute", "out linked/file", "out by hops", "folder/deep/out", "process/pyproject.toml", "../secret",
     "/etc/passwd", "linked/../../secret", "loop", "dangling", "nothing", "file/file"],
)  # fmt: skip
def test_nothing_outside_the_folder_is_opened(root: Path, path: str) -> None:
    """An absolute path, dots and links that lead out are errors, as is what does not exist."""
    with pytest.raises(OSError, match=REFUSED):
        open_beneath(root, path, READ)


def test_openat2_is_what_opens_here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel that has it, a plain file is opened by one call of openat2."""
    monkeypatch.setattr(beneath, "_walk", None)
    try:
        assert read(root, "folder/up") == "file"
    except TypeError:
        pytest.skip("this kernel, or the sandbox of these tests, has no openat2")


def test_openat2_is_tried_again_while_folders_move(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EAGAIN says that a folder was moved during the look-up, which the next try may not see."""
    syscall, tries = beneath._syscall, []
    monkeypatch.setattr(beneath, "_walk", None)

    def busy(*arguments: Any) -> Any:
        tries.append(arguments)
        return (refusing(errno.EAGAIN) if len(tries) < 3 else syscall)(*arguments)

    monkeypatch.setattr(beneath, "_syscall", busy)
    try:
        assert read(root, "folder/up") == "file"
    except TypeError:
        pytest.skip("this kernel, or the sandbox of these tests, has no openat2")
    assert len(tries) == 3


def _a_file(root: Path) -> None:
    (root / "new").symlink_to("../../secret")
    os.replace(root / "new", root / "folder" / "file")


def _a_folder(root: Path) -> None:
    (root / "folder").rename(root / "moved")
    (root / "folder").symlink_to("../outside")


@pytest.mark.parametrize("swap", [_a_file, _a_folder])
def test_a_link_that_is_swapped_in_during_the_walk_is_not_followed(
    swap: Callable[[Path], None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that appears after the links were resolved is met by O_NOFOLLOW, and then found to lead out."""
    realpath, resolved = os.path.realpath, []

    def then_swapped(path: str) -> str:
        resolved.append(realpath(path))
        if len(resolved) == 1:
            swap(root)
        return resolved[-1]

    monkeypatch.setattr(beneath, "_syscall", refusing(errno.ENOSYS))
    monkeypatch.setattr(os.path, "realpath", then_swapped)
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        open_beneath(root, "folder/file", READ)
    assert len(resolved) == 2


def test_a_link_that_becomes_a_file_during_the_walk_is_a_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system says EINVAL where a link is read that is none any more; the walk begins anew."""
    readlink = os.readlink

    def then_no_link(path: str) -> str:
        Path(path).unlink()
        Path(path).write_text("new")
        return readlink(path)

    monkeypatch.setattr(beneath, "_syscall", refusing(errno.ENOSYS))
    monkeypatch.setattr(os, "readlink", then_no_link)
    assert read(root, "link") == "new"


@pytest.mark.usefixtures("ways")
def test_a_fifo_does_not_block(root: Path) -> None:
    """A FIFO without a writer is opened at once: the caller sees that it is no file."""
    os.mkfifo(root / "fifo")
    os.close(open_beneath(root, "fifo", READ))


@pytest.mark.usefixtures("ways")
def test_no_descriptor_is_left_open(root: Path) -> None:
    """Whether the file was opened or refused."""
    before = len(os.listdir("/proc/self/fd"))
    read(root, "folder/deep/two hops")
    for path in ("out", "loop", "nothing", "file/file", "out linked/file"):
        with pytest.raises(OSError, match=REFUSED):
            open_beneath(root, path, READ)
    assert len(os.listdir("/proc/self/fd")) == before
