"""One blob: fetched once for all who want it, verified, and published into the cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

import anyio

from yaie_async.core.errors import IntegrityError
from yaie_async.core.manifest import RepoFile
from yaie_async.core.progress import Meter
from yaie_async.core.threads import run_owned
from yaie_async.fetch.assembly import Assembly, LostError, PrunedError, RangesIgnoredError
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

logger: logging.Logger = logging.getLogger("yaie_async")

# Seconds between looks at whether the process that took our partial over has finished.
_LOOK = 1.0


async def fetch_blob(
    session: Session,
    cache: RepoCache,
    commit: str,
    file: RepoFile,
    meter: Meter,
    *,
    weights: bool,
    arriving: ArrivingFile | None = None,
) -> bool:
    """Make `blobs/<etag>` exist; return whether this call wrote it, or it was there (or linked) already.

    `arriving` is told of the bytes as they come, where this call is the one that fetches them.

    **Cancellation:** every thread has ended, the lock is given back, the partial is kept for whoever comes next.
    What else awaits the same blob takes over.

    **Raises:** IntegrityError for a second wrong digest; HubUnavailableError, StalledError, DiskFullError,
    CacheAccessError, ModelFileNotFoundError.
    """
    assert file.etag is not None and file.size is not None  # `complete` saw to it
    key = cache.blob(file.etag)
    flight = session.flights[key]
    led = False

    async def lead() -> bool:
        nonlocal led
        led = True
        return await _Fetch(session, cache, commit, file, meter, weights=weights, arriving=arriving).run()

    fresh = await flight(lead)
    if session.flights.get(key) is flight:
        del session.flights[key]  # done: a later load looks at the disk again
    if not led:
        meter.cached(file.size)
    return led and fresh


class _Fetch:
    """The way of one blob into the cache, under its lock."""

    def __init__(
        self,
        session: Session,
        cache: RepoCache,
        commit: str,
        file: RepoFile,
        meter: Meter,
        *,
        weights: bool,
        arriving: ArrivingFile | None,
    ) -> None:
        assert file.etag is not None and file.size is not None
        self._session = session
        self._cache = cache
        self._commit = commit
        self._file = file
        self._etag = file.etag
        self._size = file.size
        self._meter = meter
        self._weights = weights
        self._arriving = arriving
        self._there = False
        # Set in the thread that opened it, so that a cancelled call leaves no descriptor without an owner.
        self._partial: Partial | None = None
        self._retries = 0

    async def run(self) -> bool:
        stop = Stop()
        begin = partial(self._begin, stop)
        lock = blob_lock(
            self._cache.lock(self._etag),
            partial(self._meter.blob_stage, "waiting"),
            first=begin,
            last=self._keep,
            interrupt=stop.set,
        )
        async with lock as self._give_lock_back:
            with self._meter.blob_stage("downloading"):
                return await self._under_lock()

    async def _under_lock(self) -> bool:
        if self._there:
            self._meter.cached(self._size)
            return False
        begin = time.monotonic()
        fresh = await self._fill()
        if fresh:
            self._meter.file_done()
            seconds = time.monotonic() - begin
            facts = {
                "model": self._cache.repo_id,
                "file": self._file.path,
                "stage": "downloading",
                "bytes": self._size,
                "seconds": seconds,
                "retries": self._retries,
            }
            logger.debug("%s: %s is there, after %.1f s", self._cache.repo_id, self._file.path, seconds, extra=facts)
        return fresh

    def _begin(self, stop: Stop) -> None:
        """Look whether there is nothing to fetch, else get a partial. In the thread that has taken the lock."""
        self._there = self._look(stop)
        if self._there:
            self._clean()  # a kill after the blob had its name may have left its map
        elif not stop.is_set():
            self._own(self._claim)

    def _look(self, stop: Stop) -> bool:
        """Whether the blob is linked, or lies there whole: what others wrote is verified before it is linked."""
        blob = self._cache.blob(self._etag)
        if self._cache.has(self._commit, self._file.path):
            return True
        with cache_errors(blob):
            try:
                if blob.stat().st_size != self._size:
                    return False
                if not self._session.verify:
                    return True
                with self._meter.blob_stage("verifying"):
                    return digest_of(blob, self._etag, stop.is_set) == self._etag
            except FileNotFoundError:
                # Without symlinks another process may just have moved it to where it is linked.
                return self._cache.has(self._commit, self._file.path)

    async def _fill(self) -> bool:
        """Fill partials until one is right, and publish that; whether it was this process that did."""
        location = Location(self._session, self._cache.repo_id, self._commit, self._file)
        whole = False
        wrong: list[OtherBytesError] = []
        begun: dict[int, int] = {}
        while True:
            assembly = self._assembly(location, begun)
            begun = {}
            try:
                found = await assembly.run(whole=whole)
                if found == self._etag:
                    await run_owned(self._publish, name="publish")
                    return True
                raise OtherBytesError(self._etag, found)
            except RangesIgnoredError:
                self._meter.held(-assembly.counted)
                whole = True
                if self._arriving is not None:
                    self._arriving.fail()  # all of it is written again, into the same inode
            except PrunedError:
                self._meter.held(-assembly.counted)
                await self._go_on(self._rescue)
                begun = assembly.begun  # has been copied, too
            except LostError:
                self._meter.held(-assembly.counted)
                if await self._wait_for_new_owner():
                    self._meter.cached(self._size)
                    return False
                await self._go_on(self._claim)
            except OtherBytesError as error:
                self._meter.held(-assembly.counted)
                wrong.append(error)
                # Into a new inode: the old one may be mapped by a build, and is worth nothing.
                await run_owned(self._discard, name="discard")
                if len(wrong) == 2:
                    raise self._integrity_error(error) from error
                await self._go_on(self._create)
                location = Location(self._session, self._cache.repo_id, self._commit, self._file)
            finally:
                self._retries += assembly.retries

    def _assembly(self, location: Location, begun: dict[int, int]) -> Assembly:
        assert self._partial is not None
        return Assembly(
            self._session.downloader,
            location,
            self._session.policy,
            self._partial,
            self._file,
            model=self._cache.repo_id,
            weights=self._weights,
            verify=self._session.verify,
            meter=self._meter,
            begun=begun,
        )

    async def _go_on(self, make: Callable[[], Partial]) -> None:
        await run_owned(partial(self._own, make), name="partial")

    def _own(self, make: Callable[[], Partial]) -> None:
        self._partial = make()
        if self._arriving is not None:
            self._partial.arriving = self._arriving
            self._arriving.begin(self._partial.path, self._partial.blocks)

    def _claim(self) -> Partial:
        return claim_or_create(self._cache.blobs, self._etag, self._size, lock_held=True)

    def _create(self) -> Partial:
        return Partial.create(self._cache.blobs, self._etag, self._size)

    def _rescue(self) -> Partial:
        assert self._partial is not None
        return self._partial.rescue()

    def _publish(self) -> None:
        assert self._partial is not None
        self._partial.publish()
        self._partial = None
        self._clean()
        self._give_lock_back()

    def _clean(self) -> None:
        discard_orphans(self._cache.blobs, self._etag, lock_held=True)

    def _keep(self) -> None:
        if self._partial is not None:
            self._partial.keep()
            self._partial = None

    def _discard(self) -> None:
        if self._partial is not None:
            self._partial.discard()
            self._partial = None

    async def _wait_for_new_owner(self) -> bool:
        """Wait while another process has the blob; whether it finished it. Only where locks don't work."""
        await run_owned(self._keep, name="keep")
        while True:
            # Asked first: who publishes between the two looks has left both a blob and no partial.
            alive = await run_owned(partial(has_live_owner, self._cache.blobs, self._etag), name="look")
            stop = Stop()
            if await run_owned(partial(self._look, stop), interrupt=stop.set, name="look"):
                return True
            if not alive:
                return False
            await anyio.sleep(_LOOK)

    def _integrity_error(self, error: OtherBytesError) -> IntegrityError:
        return IntegrityError(
            f"{self._file.path} of {self._cache.repo_id} came wrong twice: {error}. Nothing was linked. "
            "Check HF_ENDPOINT, and any proxy between here and it.",
            expected=error.expected,
            found=error.found,
            model=self._cache.repo_id,
            file=self._file.path,
        )
