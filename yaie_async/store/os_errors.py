"""No OSError of the cache escapes raw: each names the path, and says what to do."""

from __future__ import annotations

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
def cache_errors(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Translate what the operating system says about `path`, for which `needed` bytes are still to come.

    Raises:
        DiskFullError: for ENOSPC, EDQUOT and EFBIG.
        CacheAccessError: for every other OSError.
    """
    try:
        yield
    except LoaderError:
        raise
    except OSError as error:
        raise access_error(error, path, needed=needed) from error


def access_error(error: OSError, path: Path, *, needed: int = 0) -> LoaderError:
    """Our error for what the operating system said about `path`."""
    at = os.fspath(error.filename or path)
    if error.errno in _FULL:
        free = free_bytes(path)
        return DiskFullError(
            f"The disk is full at {path}: {needed:,} bytes still have to be written and {free:,} are free. "
            "What is downloaded is kept. Free some space, or set HF_HUB_CACHE to another disk.",
            needed=needed,
            free=free,
            path=str(path),
        )
    if error.errno in _READ_ONLY:
        return CacheAccessError(
            f"The cache can't be written at {at}: {error.strerror}. What it has can still be loaded "
            "(local_files_only=True). Set HF_HUB_CACHE or cache_dir to a directory of your own.",
            path=at,
            cause_errno=error.errno,
        )
    return CacheAccessError(
        f"The cache failed at {at}: {error.strerror or error}. Nothing half-written is used.",
        path=at,
        cause_errno=error.errno,
    )


def free_bytes(path: Path) -> int:
    """Bytes free for this user on the file system that has `path`, or will have it; 0 where unknown."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue  # not there yet; whether it can be made is found out by making it
    return 0
