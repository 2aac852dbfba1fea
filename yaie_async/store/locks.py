"""The official client's lock file of a blob, taken without blocking the event loop.

Correctness never depends on it, because some network file systems ignore it. It saves fetching a blob twice.
"""

import errno
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import cache, partial
from pathlib import Path

import anyio
from filelock import FileLock, Timeout

from yaie_async.core.log import logger
from yaie_async.core.threads import run_owned
from yaie_async.store.os_errors import cache_errors

# After these the cache can't be used at all. Any other failure is of the lock alone: a file system without flock, a
# lock server that is gone, another user's lock file, or something else in its place.
_NO_CACHE = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR, errno.EMFILE, errno.ENFILE}


@asynccontextmanager
async def blob_lock(
    path: Path,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    *,
    first: Callable[[], object] = lambda: None,
    last: Callable[[], object] = lambda: None,
    interrupt: Callable[[], None] | None = None,
) -> AsyncIterator[Callable[[], None]]:
    """Hold `.locks/<repo folder>/<etag>.lock` during the block. The lock file itself stays, as other clients expect.

    `first` runs in the thread that has taken the lock, and `last` in the thread that releases it, just before, even
    after `first` failed: a hop to another thread costs more than most of the work that is done there. The block gets a
    function that releases the lock early, to be called in a thread; `last` is not called then. `waiting()` is entered
    while another process holds the lock.

    **Cancellation:** the lock is released before control returns, whether it was held or waited for. `interrupt` is
    called while `first` runs (see `run_owned`).

    **Raises:** CacheAccessError: the lock file can't be made. What `first` and `last` raise.
    """
    # Not thread-local: another thread than the one that takes the lock releases it.
    lock = FileLock(path, thread_local=False, mode=0o664, fallback_to_soft=False)
    begun = False

    def begin() -> bool:
        nonlocal begun
        with cache_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                return False
            except OSError as error:
                if error.errno in _NO_CACHE:
                    raise
                _warn(path.parents[1], error.strerror)
        begun = True
        first()
        return True

    def release() -> None:
        nonlocal begun
        begun = False
        if lock.is_locked:
            try:
                lock.release()
            except OSError:
                path.unlink(missing_ok=True)  # as the official client's WeakFileLock does

    def end() -> None:
        try:
            last()
        finally:
            release()

    attempt = partial(run_owned, begin, interrupt=interrupt, name="lock")
    try:
        if not await attempt():
            with waiting():
                while not await attempt():  # noqa: ASYNC110 - flock has no event
                    await anyio.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - spreads the waiters, hides nothing
        yield release
    finally:
        if begun:
            await run_owned(end, name="unlock")


@cache
def _warn(folder: Path, reason: str) -> None:
    """Say once that a folder has no locks."""
    logger.warning("Files in %s can't be locked (%s): several processes may fetch the same blob.", folder, reason)
