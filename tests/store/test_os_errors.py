"""Each OSError of the cache becomes an error that names the path and says what to do."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from yaie_async.core.errors import CacheAccessError, DiskFullError, IntegrityError, OutOfMemoryError
from yaie_async.store.os_errors import cache_errors, free_bytes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number: int, tmp_path: Path) -> None:
    """No space and no quota are a DiskFullError with the bytes needed and free."""
    says = rf"full at {tmp_path}: 1,234 bytes .* HF_HUB_CACHE"
    with pytest.raises(DiskFullError, match=says) as caught, cache_errors(tmp_path, needed=1234):
        raise OSError(number, os.strerror(number))
    assert (caught.value.needed, caught.value.path) == (1234, str(tmp_path))
    assert caught.value.free > 0
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_cache_that_may_not_be_written(number: int, tmp_path: Path) -> None:
    """The error says that cached files still load, and names the file of the OSError."""
    inner = str(tmp_path / "inner")
    says = r"can't be written at .*local_files_only=True"
    with pytest.raises(CacheAccessError, match=says) as caught, cache_errors(tmp_path):
        raise OSError(number, os.strerror(number), inner)
    assert (caught.value.path, caught.value.errno) == (inner, number)


def test_any_other_failure(tmp_path: Path) -> None:
    """An I/O error is a CacheAccessError with the system's message; other exceptions pass unchanged."""
    with pytest.raises(CacheAccessError, match="Input/output error") as caught, cache_errors(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert caught.value.errno == errno.EIO
    with pytest.raises(KeyError), cache_errors(tmp_path):
        raise KeyError


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    """The disk may have room for it: the limit of the file system or of the process is named."""
    with pytest.raises(CacheAccessError, match=r"ulimit -f.* HF_HUB_CACHE"), cache_errors(tmp_path, needed=1234):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def test_no_memory(tmp_path: Path) -> None:
    """A MemoryError is an OutOfMemoryError."""
    with pytest.raises(OutOfMemoryError, match="no memory left"), cache_errors(tmp_path):
        raise MemoryError


def test_a_loader_error_passes_unchanged(tmp_path: Path) -> None:
    """IntegrityError is an OSError too, and is not translated again."""
    ours = IntegrityError("x", expected="a", found="b")
    with pytest.raises(IntegrityError) as caught, cache_errors(tmp_path):
        raise ours
    assert caught.value is ours


def test_free_bytes_of_a_missing_folder(tmp_path: Path) -> None:
    """The free space of a folder that does not exist yet is that of its future file system."""
    stat = os.statvfs(tmp_path)
    for path in (tmp_path, tmp_path / "a" / "b" / "c"):
        assert abs((free_bytes(path) or 0) - stat.f_bavail * stat.f_frsize) < 1 << 30
    (tmp_path / "file").write_text("")
    assert (free_bytes(tmp_path / "file" / "below") or 0) > 0


@pytest.mark.parametrize("answer", ["0 of 0", errno.EIO, errno.ENOSYS])
def test_a_file_system_that_does_not_say_what_is_free(
    answer: str | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE's default and object stores say 0 of 0, others fail: that is unknown, not full."""

    def disk_usage(_path: object) -> SimpleNamespace:
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return SimpleNamespace(total=0, used=0, free=0)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert free_bytes(tmp_path) is None
