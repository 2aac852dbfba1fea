"""From a repo id and a revision to a snapshot in the cache: resolve, then ensure."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio

from yaie_async.core.errors import (
    DiskFullError,
    GatedModelError,
    HubUnavailableError,
    LoaderError,
    ModelNotFoundError,
    OfflineError,
)
from yaie_async.core.plan import Listing, RepoFile, Wanted, WeightRules, is_commit
from yaie_async.core.progress import Meter
from yaie_async.core.tasks import task_group
from yaie_async.core.threads import run_owned
from yaie_async.fetch.blob import fetch_blob
from yaie_async.fetch.metadata import commit_of, complete, listing_of
from yaie_async.fetch.session import Session
from yaie_async.store.arriving_file import ArrivingFile
from yaie_async.store.cache import RepoCache
from yaie_async.store.claims import held_bytes
from yaie_async.store.completeness import Holding, holding, select
from yaie_async.store.os_errors import free_bytes

logger = logging.getLogger("yaie_async")

# What leaves a cached snapshot as good as it was: the Hub is down, or no longer lets us in.
_FALL_BACK = (HubUnavailableError, GatedModelError, ModelNotFoundError)


@dataclass(frozen=True, slots=True)
class Need:
    """Which part of a model is wanted.

    Attributes:
        weights: with its weights, or only what the tokenizer needs.
        code: with its `.py` files.
        rules: which weights are acceptable.
    """

    weights: bool
    code: bool
    rules: WeightRules


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a revision stands for.

    Attributes:
        commit: 40 hex digits.
        listing: its files, where the Hub has been asked for them.
        unconfirmed: why the Hub could not confirm the commit, which is then the cache's; None otherwise.
        replaces: the commit that the cache had for the revision before the Hub was asked.
    """

    commit: str
    listing: Listing | None = None
    unconfirmed: LoaderError | None = None
    replaces: str | None = None


async def resolve(session: Session, cache: RepoCache, revision: str, need: Need) -> Resolution:
    """Find the commit: no request offline or by a cached commit, one small one by a cached branch, one otherwise.

    **Raises:** OfflineError, ModelNotFoundError, RevisionNotFoundError, GatedModelError, HubUnavailableError,
    UnsafeFileError.
    """
    commit, held = await run_owned(partial(_cached, cache, revision, need), name="cache")
    if session.settings.offline:
        if commit is None:
            raise offline_error(cache.repo_id, f"revision {revision!r}")
        return Resolution(commit)
    if commit is not None and held is Holding.WHOLE and is_commit(revision):
        return Resolution(commit)
    try:
        if commit is not None and held is Holding.WHOLE and await commit_of(session, cache.repo_id, revision) == commit:
            return Resolution(commit)
        listing = await listing_of(session, cache.repo_id, revision)
    except _FALL_BACK as error:
        if commit is None or held is Holding.MISSING:
            raise
        facts = {"model": cache.repo_id, "stage": "resolving"}
        logger.warning("%s: using the cached snapshot %s: %s", cache.repo_id, commit[:12], error, extra=facts)
        return Resolution(commit, None, error)
    # The fetch writes the ref itself, but there is none where the snapshot is whole already.
    await run_owned(partial(_remember, cache, revision, listing.commit), name="ref")
    return Resolution(listing.commit, listing, replaces=commit)


def _remember(cache: RepoCache, revision: str, commit: str) -> None:
    if cache.snapshot(commit).is_dir():
        cache.write_ref(revision, commit)


def _cached(cache: RepoCache, revision: str, need: Need) -> tuple[str | None, Holding]:
    commit = cache.commit_of(revision)
    if commit is None:
        return None, Holding.MISSING
    return commit, _held(cache, commit, need)


def _held(cache: RepoCache, commit: str, need: Need) -> Holding:
    return holding(cache, commit, weights=need.weights, code=need.code, rules=need.rules)


async def ensure(
    session: Session,
    cache: RepoCache,
    resolution: Resolution,
    *,
    revision: str,
    need: Need,
    meter: Meter,
    on_small: Callable[[tuple[ArrivingFile, ...]], None],
) -> Path:
    """Make the snapshot hold what is needed and return its folder.

    `on_small` is called as soon as all files but the weights are in the cache and linked, but for config.json, with
    the weights that are still landing (none, where nothing had to be fetched).

    **Cancellation:** finished files stay; config.json is linked last, so what is not whole does not look it.

    **Raises:** every error of the fetch and store layers.
    """
    commit = resolution.commit
    held = await run_owned(partial(_held, cache, commit, need), name="cache")
    confirmed = resolution.unconfirmed is None and not session.settings.offline
    if held is Holding.WHOLE or (held is Holding.USABLE and not confirmed):
        on_small(())
        return cache.snapshot(commit)
    if resolution.unconfirmed is not None:
        raise copy.copy(resolution.unconfirmed) from resolution.unconfirmed.__cause__
    if session.settings.offline:
        raise offline_error(cache.repo_id, f"commit {commit[:12]}")
    listing = resolution.listing or await listing_of(session, cache.repo_id, commit)
    job = _Job(session, cache, listing, need, meter)
    await job.run(revision, resolution.replaces, on_small)
    return cache.snapshot(commit)


class _Job:
    """One fetch of what is missing: small files, then weights, each linked when its turn has come."""

    def __init__(self, session: Session, cache: RepoCache, listing: Listing, need: Need, meter: Meter) -> None:
        self._session = session
        self._cache = cache
        self._listing = listing
        self._commit = listing.commit
        self._need = need
        self._meter = meter
        self._wanted = Wanted((), (), None)
        self._fresh: set[str] = set()  # etags of the blobs that this job has written
        self._linked: set[str] = set()  # paths of files that were in the snapshot when it began
        self._weights: dict[str, anyio.CancelScope] = {}
        self._arrivals: dict[str, ArrivingFile] = {}
        self._small_linked = anyio.Event()
        # Each has a lock and two descriptors; as many wait ready as are under way, so that no connection idles.
        self._open_files = anyio.CapacityLimiter(2 * session.max_connections)

    async def run(
        self, revision: str, replaces: str | None, on_small: Callable[[tuple[ArrivingFile, ...]], None]
    ) -> None:
        self._meter.stage("downloading")
        guess = await self._plan()
        await self._check_disk(guess.files)
        await run_owned(partial(prepare, self._cache, self._commit, revision, replaces), name="prepare")
        async with task_group() as group:
            group.start_soon(self._session.downloader.clock)
            async with task_group() as weights:
                # At once, by their usual names: waiting for the index would leave the line idle.
                for file in guess.weights:
                    weights.start_soon(self._weight, file)
                async with task_group() as small:
                    for file in guess.small:
                        small.start_soon(self._fetch, file)
                exact = await self._plan()  # now by config.json and the index themselves
                await self._check_disk(tuple(file for file in exact.files if file not in guess.files))
                *others, config = exact.small
                await run_owned(partial(self._link, others), name="link")
                self._small_linked.set()
                self._drop({file.path for file in guess.weights} - {file.path for file in exact.weights})
                for file in exact.weights:
                    if file not in guess.weights:
                        weights.start_soon(self._weight, file)
                on_small(tuple(self._arriving(file) for file in exact.weights))
            group.cancel_scope.cancel()
        await run_owned(partial(self._link, [config]), name="link")

    async def _plan(self) -> Wanted:
        """What is wanted, sizes known."""
        self._listing, wanted = await _wanted(self._session, self._cache, self._listing, self._need)
        self._wanted = wanted
        self._meter.expect(total=sum(file.size or 0 for file in wanted.files), files=len(wanted.files))
        return wanted

    async def _check_disk(self, files: tuple[RepoFile, ...]) -> None:
        """Refuse what there is no room for, and note what is there: in one go, as each file has hops enough."""

        def work() -> set[str]:
            check_disk(self._cache, self._commit, files)
            return {file.path for file in files if self._cache.has(self._commit, file.path)}

        if files:
            self._linked |= await run_owned(work, name="disk")

    async def _weight(self, file: RepoFile) -> None:
        with anyio.CancelScope() as scope:
            self._weights[file.path] = scope
            await self._fetch(file, self._arriving(file))
            await self._small_linked.wait()
            await run_owned(partial(self._link, [file]), name="link")

    def _arriving(self, file: RepoFile) -> ArrivingFile:
        if file.path not in self._arrivals:
            assert file.etag is not None
            places = self._cache.blob(file.etag), self._cache.pointer(self._commit, file.path)
            self._arrivals[file.path] = ArrivingFile(file.path, file.size or 0, *places)
        return self._arrivals[file.path]

    def _drop(self, paths: set[str]) -> None:
        for path in paths:
            self._weights[path].cancel()

    async def _fetch(self, file: RepoFile, arriving: ArrivingFile | None = None) -> None:
        assert file.etag is not None
        weights = arriving is not None
        async with self._open_files:
            if file.path in self._linked:
                self._meter.cached(file.size or 0)
            elif await fetch_blob(
                self._session, self._cache, self._commit, file, self._meter, weights=weights, arriving=arriving
            ):
                self._fresh.add(file.etag)
            if arriving is not None:
                arriving.complete()

    def _link(self, files: list[RepoFile]) -> None:
        for file in files:
            if file.etag is not None and not self._cache.has(self._commit, file.path):
                fresh = file.etag in self._fresh and not self._has_twin(file)
                self._cache.link(self._commit, file.path, file.etag, fresh=fresh)

    def _has_twin(self, file: RepoFile) -> bool:
        """Whether another file of the same content still has to be linked: without symlinks the last one moves it."""
        return any(
            other.etag == file.etag and other.path != file.path and not self._cache.has(self._commit, other.path)
            for other in self._wanted.files
        )


def prepare(cache: RepoCache, commit: str, revision: str, replaces: str | None) -> None:
    """Make the folders of a fetch, and the ref, unless that has moved on from the commit that it `replaces`.

    Raises:
        CacheAccessError, DiskFullError: when they can't be made.
    """
    cache.prepare(commit)
    # Whoever has asked the Hub since then knows better, and a loader may live for days.
    if cache.commit_of(revision) == replaces:
        cache.write_ref(revision, commit)


async def listing_for(session: Session, cache: RepoCache, resolution: Resolution, need: Need) -> tuple[Listing, Wanted]:
    """The listing of a resolved commit and what is wanted of it, for a plan: sizes known, nothing fetched.

    Offline and for an unconfirmed commit it is made of what the cache has.

    **Raises:** as `ensure`.
    """
    listing = resolution.listing
    if listing is None:
        files = await run_owned(partial(known_files, cache, resolution.commit), name="cache")
        listing = Listing(resolution.commit, files, {})
        held = await run_owned(partial(_held, cache, resolution.commit, need), name="cache")
        if held is not Holding.WHOLE and resolution.unconfirmed is None and not session.settings.offline:
            listing = await listing_of(session, cache.repo_id, resolution.commit)
    return await _wanted(session, cache, listing, need)


def known_files(cache: RepoCache, commit: str) -> Mapping[str, RepoFile]:
    """What the disk tells of a commit's files: all, where the official client left its listing, else what is there."""
    return cache.tree(commit) or cache.files(commit)


async def _wanted(session: Session, cache: RepoCache, listing: Listing, need: Need) -> tuple[Listing, Wanted]:
    choose = partial(select, cache, listing, weights=need.weights, code=need.code, rules=need.rules)
    wanted = await run_owned(choose, name="plan")
    if all(file.size is not None for file in wanted.files):
        return listing, wanted
    return await _wanted(session, cache, await completed(session, cache.repo_id, listing, wanted.files), need)


async def completed(session: Session, repo_id: str, listing: Listing, files: tuple[RepoFile, ...]) -> Listing:
    """The listing with size and etag of `files`, for mirrors that leave them out: one HEAD for each that lacks.

    **Raises:** as `yaie_async.fetch.metadata.complete`.
    """
    known = dict(listing.files)
    limiter = anyio.CapacityLimiter(session.max_connections)

    async def one(file: RepoFile) -> None:
        async with limiter:
            known[file.path] = await complete(session, repo_id, listing.commit, file)

    async with task_group() as group:
        for file in files:
            if file.size is None:
                group.start_soon(one, file)
    return Listing(listing.commit, known, listing.parameters)


def bytes_missing(cache: RepoCache, commit: str, files: tuple[RepoFile, ...]) -> dict[Path, int]:
    """By blob, the bytes of `files` that the cache has neither linked, nor as a blob, nor in a resumable partial."""
    wanted = {file.etag: file for file in files if not cache.has(commit, file.path)}
    return {
        cache.blob(etag): (file.size or 0) - held_bytes(cache.blobs, etag)
        for etag, file in wanted.items()
        if etag is not None and not cache.blob(etag).exists()
    }


def check_disk(cache: RepoCache, commit: str, files: tuple[RepoFile, ...]) -> None:
    """Refuse a fetch that the disk has no room for, before its first byte.

    Raises:
        DiskFullError: with the bytes needed and free.
    """
    needed, free = sum(bytes_missing(cache, commit, files).values()), free_bytes(cache.root)
    if needed > free:
        raise DiskFullError(
            f"{cache.repo_id} needs {needed:,} more bytes at {cache.root} and {free:,} are free. Nothing was "
            "fetched. Free some space, or set HF_HUB_CACHE (or cache_dir) to another disk.",
            needed=needed,
            free=free,
            path=str(cache.root),
            model=cache.repo_id,
        )


def offline_error(repo_id: str, what: str) -> OfflineError:
    """The error for what is not cached where no request may be made."""
    return OfflineError(
        f"{repo_id} ({what}) is not whole in the cache, and no request may be made (HF_HUB_OFFLINE or "
        "local_files_only). Fetch it once while online: `yaie-async prefetch " + repo_id + "`.",
        model=repo_id,
    )
