"""Tests of the files through which workers share their states."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from yaie_async.asgi import worker_file
from yaie_async.asgi.worker_file import WorkerFile

_SOURCE = Path(worker_file.__file__).parents[2]

# Writes states of changing length as fast as it can; each says what it has to be.
_WRITER = """\
from itertools import count
from yaie_async.asgi.worker_file import WorkerFile

file = WorkerFile()
for number in count():
    file.write({"number": number, "text": str(number % 10) * (number % 10 * 1000)})
"""

_PARENT = """\
import os, sys
from yaie_async.asgi.worker_file import WorkerFile

file = WorkerFile()
file.write({"is": "the parent"})
if os.fork():
    os.wait()
else:
    file.write({"is": "the child"})
    sys.stdin.read()
"""


@pytest.fixture
def reader(folder: Path) -> Iterator[WorkerFile]:
    file = WorkerFile()
    file.write({"pid": "reader"})
    yield file
    file.close()
    assert not list(folder.iterdir())


def test_each_sees_the_others(folder: Path, reader: WorkerFile) -> None:
    """A worker reads the last state of each other, until that one has closed its file."""
    other = WorkerFile()
    other.write({"state": "loading", "long": "x" * 1000})
    other.write({"state": "ready"})
    assert reader.others() == [{"state": "ready"}]
    assert other.others() == [{"pid": "reader"}]
    other.close()
    assert reader.others() == []
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_worker_is_killed_while_it_writes(folder: Path, reader: WorkerFile) -> None:
    """Its states are read whole while it lives, and its file is removed after it was killed, in 10 of 10 trials."""
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", _WRITER], env=os.environ | {"PYTHONPATH": str(_SOURCE)}) as writer:
            wait_until(reader.others)
            end = time.monotonic() + 0.05
            while time.monotonic() < end:
                for state in reader.others():
                    digit = state["number"] % 10
                    assert state["text"] == str(digit) * (digit * 1000)
            writer.kill()
        assert reader.others() == []
        assert len(list(folder.iterdir())) == 1


def test_a_child_of_a_worker_outlives_it(reader: WorkerFile) -> None:
    """A forked child does not keep the file of its parent locked, and has one of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], env=os.environ | {"PYTHONPATH": str(_SOURCE)}, stdin=subprocess.PIPE
    ) as parent:
        wait_until(lambda: len(reader.others()) == 2)
        states = [{"is": "the child"}, {"is": "the parent"}]
        assert sorted(reader.others(), key=str) == states
        parent.kill()
        wait_until(lambda: reader.others() == states[:1])
    wait_until(lambda: reader.others() == [])  # its stdin is at its end


def test_what_is_not_ours_is_left_alone(folder: Path, reader: WorkerFile) -> None:
    """Files of other names stay, and garbage in a locked file of ours is no state."""
    import fcntl

    (folder / "notes").touch()
    os.mkfifo(folder / "worker-fifo")
    (folder / "worker-link").symlink_to(folder / "notes")
    (folder / "worker-folder").mkdir()
    garbage = [
        b"",
        b"x" * 2000,
        b"00000000 ffffffff {",
        b"00000000 00000002 {}",
        b"00000000 00000000 ",
        b"00000000 -0000001 " + b"x" * 100,
    ]
    files = []
    for number, data in enumerate(garbage):
        (folder / f"worker-{number}").write_bytes(data)
        files.append((folder / f"worker-{number}").open("rb"))
        fcntl.flock(files[-1], fcntl.LOCK_EX)
    assert reader.others() == []
    assert len(list(folder.iterdir())) == 5 + len(garbage)
    for file in files:
        file.close()
    assert reader.others() == []  # now they are of workers that have ended
    assert len(list(folder.iterdir())) == 5
    for name in ("notes", "worker-fifo", "worker-link"):
        (folder / name).unlink()
    (folder / "worker-folder").rmdir()


def test_a_file_that_was_removed_is_made_again(folder: Path, reader: WorkerFile) -> None:
    """The cleaning of a runtime folder takes no worker out of its group."""
    other = WorkerFile()
    other.write({"state": "loading"})
    (path,) = [path for path in folder.iterdir() if path.name != reader._name]
    path.unlink()
    assert reader.others() == []
    other.write({"state": "ready"})
    assert reader.others() == [{"state": "ready"}]
    other.close()


@pytest.mark.parametrize("planted", ["open to others", "another's", "link", "file", "above"])
def test_a_planted_folder_is_refused(planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another user may have made, or may look into, holds no states."""
    if planted == "another's" and os.geteuid():
        pytest.skip("needs root, to make a folder of another user")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"yaie-async-{os.geteuid()}"
    if planted == "file":
        folder.touch()
    elif planted == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif planted == "above":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    else:
        folder.mkdir(mode=0o700)
        if planted == "another's":
            os.chown(folder, 12345, 12345)
        else:
            folder.chmod(0o770)
    for use in (lambda: WorkerFile().write({}), WorkerFile().others):
        with pytest.raises(OSError, match=str(folder.name)):
            use()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path.joinpath("private")))
    (tmp_path / "private").mkdir()
    file = WorkerFile()
    file.write({})
    assert list((tmp_path / "private" / folder.name).iterdir())
    file.close()


@pytest.mark.parametrize("what", ["missing", "not for us"])
def test_a_runtime_folder_that_is_of_no_use(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a service that has inherited XDG_RUNTIME_DIR: the folder for temporary files holds the states."""
    (tmp_path / "not for us").touch(0o400)  # which root can't enter either
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / what))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = WorkerFile()
    file.write({})
    assert list((tmp_path / f"yaie-async-{os.geteuid()}").iterdir())
    file.close()


def test_the_disk_is_full_in_the_middle(reader: WorkerFile) -> None:
    """A state of which only a part was written is an error, as the others can't read it; the next one is whole."""
    other = WorkerFile()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="No space left"):
            other.write({"text": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert reader.others() == []
    other.write({"text": "x" * 200})
    assert reader.others() == [{"text": "x" * 200}]
    other.close()
