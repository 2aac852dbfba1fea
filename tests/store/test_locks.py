"""The official lock file of a blob, taken by this package and by the official client."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from huggingface_hub.utils import WeakFileLock

from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until
from yaie_async.core.errors import CacheAccessError
from yaie_async.store.locks import blob_lock

pytestmark = pytest.mark.anyio


def is_free(path: Path) -> bool:
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".locks" / "models--org--name" / "etag.lock"


async def test_it_is_the_lock_that_the_official_client_takes(anyio_backend: Any, path: Path) -> None:
    """While it is held, the official client can't take it; afterwards the file stays, free, with mode 0664."""
    before = os.umask(0o077)
    try:
        async with blob_lock(path):
            assert not is_free(path)
            with pytest.raises(TimeoutError), WeakFileLock(path, timeout=0.1):
                pass
    finally:
        os.umask(before)
    assert is_free(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


@pytest.fixture
def other(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, by the official client's own class, until it is killed."""
    path.parent.mkdir(parents=True)
    script = (
        "import sys; from huggingface_hub.utils import WeakFileLock\n"
        "with WeakFileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


async def test_it_waits_for_another_process(anyio_backend: Any, path: Path, other: subprocess.Popen[str]) -> None:
    """The loop keeps running while another process holds the lock, and gets it soon after that process is killed."""
    beats, held, seen = 0, anyio.Event(), []

    @contextmanager
    def waiting() -> Iterator[None]:
        seen.append("waits")
        yield
        seen.append("has it")

    async def take() -> None:
        async with blob_lock(path, waiting):
            held.set()

    async with anyio.create_task_group() as group:
        group.start_soon(take)
        watch = Stopwatch()
        while beats <= 20 or not seen:
            beats += 1
            await anyio.sleep(0.002)
        assert watch.seconds < 0.2
        assert not held.is_set()
        assert seen == ["waits"]
        other.kill()
        watch = Stopwatch()
        await held.wait()
        assert watch.seconds < 5
        assert seen == ["waits", "has it"]
    async with blob_lock(path, waiting):
        assert seen == ["waits", "has it"]


async def test_two_tasks_never_hold_it_together(anyio_backend: Any, path: Path) -> None:
    """Tasks of one process exclude each other too, and all of them get the lock."""
    inside = most = taken = 0

    async def take() -> None:
        nonlocal inside, most, taken
        async with blob_lock(path):
            inside += 1
            most = max(most, inside)
            await anyio.sleep(0.005)
            inside -= 1
            taken += 1

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(take)
    assert (most, taken) == (1, 4)


async def test_a_cancel_releases_it(anyio_backend: Any, path: Path) -> None:
    """After a cancel while waiting or holding, nothing stays locked and no thread is left."""
    holding = anyio.Event()

    async def hold() -> None:
        async with blob_lock(path):
            holding.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        await holding.wait()
        with anyio.move_on_after(0.05) as scope:
            async with blob_lock(path):
                raise AssertionError
        assert scope.cancelled_caught
        assert not is_free(path)
        group.cancel_scope.cancel()
    assert is_free(path)
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("yaie_async")])


async def test_an_error_inside_releases_it(anyio_backend: Any, path: Path) -> None:
    """An error in the block is raised unchanged, and the lock is free."""
    with pytest.raises(KeyError):
        async with blob_lock(path):
            raise KeyError
    assert is_free(path)


async def test_where_no_lock_can_be_made(anyio_backend: Any, tmp_path: Path) -> None:
    """A lock file that can't be made is a CacheAccessError with its path, at once."""
    (tmp_path / ".locks").write_text("a file where the folder should be")
    with pytest.raises(CacheAccessError, match=r"\.locks"):
        async with blob_lock(tmp_path / ".locks" / "models--a" / "etag.lock"):
            pass


@pytest.mark.parametrize("call", ["flock", "open"])
async def test_where_locks_fail(
    anyio_backend: Any, path: Path, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where flock fails, or the lock file is another user's, the block runs without the lock, `last` too.

    That is said once for a cache.
    """
    flock, open_file = fcntl.flock, os.open

    def no_lock(fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_UN:
            flock(fd, operation)
        else:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def no_file(name: Any, *arguments: Any, **more: Any) -> int:
        if str(name).endswith(".lock"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), name)
        return open_file(name, *arguments, **more)

    if call == "flock":
        monkeypatch.setattr(fcntl, "flock", no_lock)
    else:
        monkeypatch.setattr(os, "open", no_file)
    calls: list[str] = []
    for _ in range(2):
        async with blob_lock(path, first=lambda: calls.append("first"), last=lambda: calls.append("last")):
            calls.append("inside")
    assert calls == ["first", "inside", "last"] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "can't be locked" in caplog.text
