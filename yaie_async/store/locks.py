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
from yaie_async.store.os_errors import cache_errors


def _nothing() -> None: ...


@asynccontextmanager
async def blob_lock(
    path: Path,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    *,
    first: Callable[[], object] = _nothing,
    last: Callable[[], object] = _nothing,
    interrupt: Callable[[], None] | None = None,
) -> AsyncIterator[Callable[[], None]]:
    """Hold `.locks/<repo folder>/<etag>.lock` during the block. The file stays, as everyone expects.

    `first` runs in the thread that takes it, right after that, and `last` in the one that gives it back, right
    before that, even where `first` failed: a hop to a thread costs more than most of what is done there. The block
    gets a function for a thread of its own that gives the lock back early; then `last` is not called.

    While another process holds it, `waiting()` is entered.

    **Cancellation:** while waiting or holding: the lock is given back before control returns. `interrupt` is called
    where `first` runs (see `run_owned`).

    **Raises:** CacheAccessError when the lock file can't be made; what `first` and `last` raise.
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

    def begin() -> bool:
        if not attempt():
            return False
        first()
        return True

    def release() -> None:
        if lock is not None and lock.is_locked:
            try:
                lock.release()
            except OSError:
                path.unlink(missing_ok=True)  # as WeakFileLock does

    def end() -> None:
        try:
            last()
        finally:
            release()

    try:
        if not await run_owned(begin, interrupt=interrupt, name="lock"):
            with waiting():
                while not await run_owned(begin, interrupt=interrupt, name="lock"):  # noqa: ASYNC110 - flock tells nobody
                    await anyio.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - spreads waiters, hides nothing
        yield release
    finally:
        if lock is not None and lock.is_locked:
            await run_owned(end, name="unlock")
