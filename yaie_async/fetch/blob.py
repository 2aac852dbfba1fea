"""One blob: fetched once for all tasks that need it, verified, and published into the cache."""

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio

from yaie_async.core.errors import IntegrityError, printable
from yaie_async.core.log import logger
from yaie_async.core.manifest import RepoFile
from yaie_async.core.names import digest_kind
from yaie_async.core.progress import Meter
from yaie_async.core.threads import run_owned
from yaie_async.fetch.assembly import Assembly, LostError, PrunedError, WrongDigestError
from yaie_async.fetch.body import RangesIgnoredError
from yaie_async.fetch.digest import digest_of
from yaie_async.fetch.location import Location, OtherBytesError
from yaie_async.fetch.session import Session
from yaie_async.fetch.stop import Stop
from yaie_async.store.arriving_file import ArrivingFile
from yaie_async.store.cache import RepoCache
from yaie_async.store.claims import claim_or_create, discard_orphans, has_live_owner
from yaie_async.store.locks import blob_lock
from yaie_async.store.os_errors import cache_errors
from yaie_async.store.partials import Partial
from yaie_async.store.shared_blobs import link_from_store

# Seconds between checks whether the process that claimed our partial has finished.
_LOOK = 1.0


async def fetch_blob(
    session: Session,
    cache: RepoCache,
    commit: str,
    file: RepoFile,
    meter: Meter,
    arriving: ArrivingFile | None = None,
) -> bool:
    """Make `blobs/<etag>` exist. Return whether this call wrote it; otherwise it was there, or linked, already.

    A weight file is `arriving`. It sees the blocks as they are written, if this call is the one that fetches them.

    **Cancellation:** every thread has ended, the lock is released, and the partial is kept for the next load. Another
    task that awaits the same blob takes over.

    **Raises:** IntegrityError for a second wrong digest; HubUnavailableError, StalledError, DiskFullError,
    CacheAccessError, ModelFileNotFoundError.
    """
    etag, size = file.etag, file.size
    assert etag is not None and size is not None  # `metadata.complete` has filled them in
    key = cache.blob(etag)
    flight = session.flights[key]
    own = _Fetch(session, cache, commit, file, etag, size, meter, arriving)
    with meter.stall.behind(session.stall):
        fresh = await flight(own.run)
    if session.flights.get(key) is flight:
        del session.flights[key]  # done: a later load looks at the disk again
    if not own.begun:
        meter.cached(size)
    return own.begun and fresh


@dataclass(eq=False)
class _Fetch:
    """The way of one blob into the cache, under its lock."""

    session: Session
    cache: RepoCache
    commit: str
    file: RepoFile
    etag: str
    size: int
    meter: Meter
    arriving: ArrivingFile | None  # None for a small file
    begun: bool = field(init=False, default=False)  # or another task has done it
    # Set in the thread that opened it, so that a cancelled call leaves no descriptor without an owner.
    _partial: Partial | None = field(init=False, default=None)

    async def run(self) -> bool:
        self.begun = True
        stop = Stop()
        lock = blob_lock(
            self.cache.lock(self.etag),
            partial(self.meter.blob_stage, "waiting"),
            first=partial(self._begin, stop),
            last=self._keep,
            interrupt=stop.set,
        )
        async with lock as self._release_lock:
            with self.meter.blob_stage("downloading"):
                if self._partial is not None:
                    return await self._fill()
                self.meter.cached(self.size)
                return False

    def _begin(self, stop: Stop) -> None:
        """Get a partial, unless there is nothing to fetch. Runs in the thread that has taken the lock."""
        if self._look(stop) or (self.file.xet_hash is not None and self._link(self.file.xet_hash, stop)):
            # A kill right after publishing may have left the map.
            discard_orphans(self.cache.blobs, self.etag)
        elif not stop.is_set():
            self._own(self._claim)

    def _look(self, stop: Stop) -> bool:
        """Return whether the blob is linked, or complete. A blob that others wrote is verified first."""
        blob = self.cache.blob(self.etag)
        if self.cache.has(self.commit, self.file.path):
            return True
        with cache_errors(blob):
            try:
                status = blob.stat()
                if status.st_size != self.size or not stat.S_ISREG(status.st_mode):
                    return False
                if not self.session.verify:
                    return True
                right = self._is_right(stop, blob)
            except FileNotFoundError:
                # Without symlinks another process may have moved the blob to its snapshot a moment ago.
                return self.cache.has(self.commit, self.file.path)
        if not right and self.file.candidate:
            self._warn()
        return right or self.file.candidate

    def _warn(self) -> None:
        asked = self.session.asked(self.cache.repo_id, self.commit, self.file.path)
        text = "%s has no digest to check its bytes by, only the ETag %s: they are taken as they come."
        logger.warning(text, asked.what, printable(self.etag), extra=asked.facts)

    def _link(self, xet_hash: str, stop: Stop) -> bool:
        """Return whether the official client has these bytes of another repository, which are then linked."""
        if digest_kind(self.etag) is None or self.file.candidate:
            return False  # they could not be told from others
        blob, is_right = self.cache.blob(self.etag), partial(self._is_right, stop)
        return link_from_store(self.cache.root, blob, xet_hash, self.size, is_right)

    def _is_right(self, stop: Stop, path: Path) -> bool:
        with self.meter.blob_stage("verifying"):
            return digest_of(path, self.etag, stop.is_set) == self.etag

    async def _fill(self) -> bool:
        """Fill partials until one is right, and publish it. Return whether this process did that."""
        start, retries = time.monotonic(), 0
        asked = self.session.asked(self.cache.repo_id, self.commit, self.file.path)
        location = Location(self.session, asked)
        weights = self.arriving is not None
        whole = failed = False
        while True:
            assert self._partial is not None
            assembly = Assembly(self.session, location, self._partial, self.meter, weights)
            try:
                await assembly.run(whole=whole)
            except RangesIgnoredError:
                whole = True
                if self.arriving is not None:
                    self.arriving.fail()  # all of it is written again, into the same inode
            except PrunedError:
                await self._go_on(self._partial.rescue)
            except LostError:
                if await self._wait_for_new_owner():
                    self.meter.cached(self.size)
                    return False
                await self._go_on(self._claim)
            except OtherBytesError as error:
                if self.file.candidate and isinstance(error, WrongDigestError):
                    self._warn()
                    self.meter.held(self.size)  # the assembly took it back
                    break
                await run_owned(self._partial.discard, name="discard")
                if failed:
                    raise IntegrityError(
                        f"{asked.what} arrived with wrong contents twice: {error}. Nothing was linked. "
                        "Check HF_ENDPOINT and any proxy on the way to it.",
                        expected=error.expected,
                        found=error.found,
                        model=asked.model,
                        file=asked.file,
                    ) from error
                failed = True
                # Into a new inode, because a build may have mapped the old one.
                await self._go_on(partial(Partial.create, self.cache.blobs, self.etag, self.size))
                location = Location(self.session, asked)
            else:
                break
            retries += assembly.retries
        await run_owned(self._publish, name="publish")
        self.meter.file_done()
        seconds = time.monotonic() - start
        retries += assembly.retries
        facts = {**asked.facts, "bytes": self.size, "seconds": seconds, "retries": retries}
        logger.debug("%s: downloaded %s in %.1f s", asked.model, asked.file, seconds, extra=facts)
        return True

    async def _go_on(self, make: Callable[[], Partial]) -> None:
        await run_owned(partial(self._own, make), name="partial")

    def _own(self, make: Callable[[], Partial]) -> None:
        self._partial = make()
        if self.arriving is not None:
            self.arriving.begin(self._partial.path, self._partial.state)

    def _claim(self) -> Partial:
        return claim_or_create(self.cache.blobs, self.etag, self.size)

    def _publish(self) -> None:
        assert self._partial is not None
        self._partial.publish()
        discard_orphans(self.cache.blobs, self.etag)
        self._release_lock()

    def _keep(self) -> None:
        if self._partial is not None:
            self._partial.keep()  # does nothing to one that is published or discarded

    async def _wait_for_new_owner(self) -> bool:
        """Wait while another process has the blob; return whether it finished it. Only where locks don't work."""
        await run_owned(self._keep, name="keep")
        while True:
            # This comes first: a process that publishes between the two checks leaves a blob and no partial.
            alive = await run_owned(partial(has_live_owner, self.cache.blobs, self.etag), name="look")
            stop = Stop()
            if await run_owned(partial(self._look, stop), interrupt=stop.set, name="look"):
                return True
            if not alive:
                return False
            await anyio.sleep(_LOOK)
