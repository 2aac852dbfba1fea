"""The official client's lock file of a blob, taken without ever blocking the event loop.

Correctness never depends on it (some network file systems ignore it): it saves fetching twice.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path

import anyio
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from yaie_async.core.threads import run_owned
from yaie_async.store.access import cache_errors


@asynccontextmanager
async def blob_lock(
    path: Path, waiting: Callable[[], AbstractContextManager[object]] = nullcontext
) -> AsyncIterator[None]:
    """Hold `.locks/<repo folder>/<etag>.lock` during the block. The file stays, as everyone expects.

    While another process holds it, `waiting()` is entered.

    **Cancellation:** while waiting or holding: the lock is given back before control returns.

    **Raises:** CacheAccessError when the lock file can't be made.
    """
    lock: BaseFileLock | None = None

    def attempt() -> bool:
        nonlocal lock
        with cache_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not thread-local: it is released in another thread than the one that took it.
            lock = lock or FileLock(path, thread_local=False, mode=0o664)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                return False
            except NotImplementedError:  # no flock here: the official client does the same
                lock = SoftFileLock(path, thread_local=False)
                return attempt()
            return True

    def release() -> None:
        if lock is not None and lock.is_locked:
            try:
                lock.release()
            except OSError:
                path.unlink(missing_ok=True)  # as WeakFileLock does

    try:
        if not await run_owned(attempt, name="lock"):
            with waiting():
                while not await run_owned(attempt, name="lock"):  # noqa: ASYNC110 - flock tells nobody
                    await anyio.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - spreads waiters, hides nothing
        yield
    finally:
        await run_owned(release, name="unlock")
