"""Translates OSErrors of the cache: no OSError escapes raw, and each error names the path and what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yaie_async.core.errors import CacheAccessError, DiskFullError, LoaderError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def cache_errors(path: Path, *, needed: int = 0, reading: bool = False) -> Iterator[None]:
    """Translate an OSError about `path`, where `needed` bytes still have to be written, or which is only read.

    A full disk becomes a DiskFullError, every other OSError a CacheAccessError.
    """
    try:
        yield
    except LoaderError:
        raise
    except OSError as error:
        raise _translated(error, path, needed, reading=reading) from error


def _translated(error: OSError, path: Path, needed: int, *, reading: bool) -> LoaderError:
    if error.errno in _FULL:
        free = free_bytes(path)
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
    else:
        message = (
            f"The cache failed at {at}: {error.strerror or error}. No incomplete file is used. "
            "Check the disk, or set HF_HUB_CACHE or cache_dir to another one."
        )
    return CacheAccessError(message, path=at, cause_errno=error.errno)


def free_bytes(path: Path) -> int:
    """Free bytes for this user on the file system of `path`, which need not exist yet; 0 where unknown."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue  # it does not exist, so its parent is asked
    return 0
