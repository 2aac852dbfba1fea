"""Translates OSErrors of the cache: no OSError escapes raw, and each error names the path and what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yaie_async.core.errors import CacheAccessError, DiskFullError, LoaderError, OutOfMemoryError

_FULL = {errno.ENOSPC, errno.EDQUOT}
# What file systems that take only whole files from front to back answer to a write at an offset or an `ftruncate`.
_SEQUENTIAL = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE, errno.EINVAL}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def cache_errors(path: Path, *, needed: int = 0, reading: bool = False) -> Iterator[None]:
    """Translate an OSError about `path`, where `needed` bytes still have to be written, or which is only read.

    A full disk becomes a DiskFullError, every other OSError a CacheAccessError; no memory an OutOfMemoryError.
    """
    try:
        yield
    except LoaderError:
        raise
    except MemoryError as error:
        message = f"There is no memory left to work on {path}. What is downloaded is kept. Free some memory."
        raise OutOfMemoryError(message, needed=None, free=None, device="cpu") from error
    except OSError as error:
        raise _translated(error, path, needed, reading=reading) from error


def _translated(error: OSError, path: Path, needed: int, *, reading: bool) -> LoaderError:
    if error.errno in _FULL:
        free = free_bytes(path) or 0
        return DiskFullError(
            f"The disk is full at {path}: {needed:,} bytes still have to be written and {free:,} are free. "
            "What is downloaded is kept. Free some space, or set HF_HUB_CACHE to another disk.",
            needed=needed,
            free=free,
            path=str(path),
        )
    at = os.fspath(error.filename or path)
    if reading:
        message = f"{at} can't be read: {error.strerror or error}. Check its permissions and the disk."
    elif error.errno in _READ_ONLY:
        message = (
            f"The cache can't be written at {at}: {error.strerror}. Files that are in the cache still load with "
            "local_files_only=True. Set HF_HUB_CACHE or cache_dir to a directory that you may write to."
        )
    elif error.errno == errno.EFBIG:
        message = (
            f"{at} would be larger than its file system or a limit of this process (ulimit -f) allows. "
            "Set HF_HUB_CACHE or cache_dir to another disk."
        )
    elif error.errno in _SEQUENTIAL:
        message = (
            f"The cache can't be written at {at}: {error.strerror}. Its file system takes no writes at an offset, "
            "which downloads in parallel need. Set HF_HUB_CACHE or cache_dir to a local disk, and copy it afterwards."
        )
    else:
        message = (
            f"The cache failed at {at}: {error.strerror or error}. No incomplete file is used. "
            "Check the disk, or set HF_HUB_CACHE or cache_dir to another one."
        )
    return CacheAccessError(message, path=at, cause_errno=error.errno)


def free_bytes(path: Path) -> int | None:
    """Free bytes for this user on the file system of `path`, which need not exist yet; None where unknown."""
    for folder in (path, *path.parents):
        try:
            usage = shutil.disk_usage(folder)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # its parent is on the same file system
        except OSError:
            break
        return usage.free if usage.total else None  # FUSE's default, and object stores: 0 of 0
    return None
