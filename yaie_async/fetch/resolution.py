"""What a revision stands for, and the manifest of a load or of a choice at its commit."""

import copy
from dataclasses import dataclass, replace
from functools import partial

import anyio

from yaie_async.core.errors import (
    GatedModelError,
    HubUnavailableError,
    LoaderError,
    ModelNotFoundError,
    OfflineError,
)
from yaie_async.core.log import logger
from yaie_async.core.manifest import Listing, Manifest, Need, RepoFile
from yaie_async.core.names import is_commit
from yaie_async.core.tasks import task_group
from yaie_async.core.threads import run_owned
from yaie_async.fetch.metadata import commit_of, complete, listing_of
from yaie_async.fetch.patterns import Patterns
from yaie_async.fetch.session import Session
from yaie_async.store.cache import RepoCache
from yaie_async.store.completeness import Completeness, SnapshotState, cached_manifest, known_files, snapshot_state

# Errors after which a cached snapshot is as good as before: the Hub is down, or no longer gives access.
_FALL_BACK = (HubUnavailableError, GatedModelError, ModelNotFoundError)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a revision stands for.

    Attributes:
        revision: what was asked for.
        commit: 40 hex digits.
        listing: its files, where the Hub was asked for them.
        unconfirmed: why the Hub could not confirm the commit, which is then the cache's; None otherwise.
        replaces: the commit that the cache had for the revision before the Hub was asked.
    """

    revision: str
    commit: str
    listing: Listing | None = None
    unconfirmed: LoaderError | None = None
    replaces: str | None = None


async def resolve(session: Session, cache: RepoCache, revision: str, need: Need) -> Resolution:
    """Find the commit: no request offline or by a cached commit, one small one by a cached branch, one otherwise.

    **Cancellation:** nothing is left behind.

    **Raises:** OfflineError, ModelNotFoundError, RevisionNotFoundError, GatedModelError, HubUnavailableError,
    UnsafeFileError.
    """
    commit, completeness = await run_owned(partial(_cached, cache, revision, need), name="cache")
    if session.settings.offline:
        if commit is None:
            raise offline_error(cache.repo_id, f"revision {revision!r}")
        return Resolution(revision, commit)
    whole = commit is not None and completeness is Completeness.COMPLETE
    if commit is not None and whole and is_commit(revision):
        return Resolution(revision, commit)
    try:
        if commit is not None and whole and await commit_of(session, cache.repo_id, revision) == commit:
            return Resolution(revision, commit)
        listing = await listing_of(session, cache.repo_id, revision)
    except _FALL_BACK as error:
        if commit is None or completeness is Completeness.MISSING:
            raise
        facts = {"model": cache.repo_id, "stage": "resolving"}
        logger.warning("%s: using the cached snapshot %s: %s", cache.repo_id, commit[:12], error, extra=facts)
        return Resolution(revision, commit, None, error)
    assert listing.commit is not None
    # The fetch writes the ref itself, but no fetch follows where the snapshot is whole already.
    await run_owned(partial(_remember, cache, revision, listing.commit), name="ref")
    return Resolution(revision, listing.commit, listing, replaces=commit)


def _remember(cache: RepoCache, revision: str, commit: str) -> None:
    if cache.snapshot(commit).is_dir():
        cache.write_ref(revision, commit)


def _cached(cache: RepoCache, revision: str, need: Need) -> tuple[str | None, Completeness]:
    commit = cache.commit_of(revision)
    return commit, Completeness.MISSING if commit is None else snapshot_state(cache, commit, need).completeness


async def manifest_of(session: Session, cache: RepoCache, resolution: Resolution, need: Need) -> Manifest:
    """The manifest of a load: complete, where the cache is believed to have all of it; sizes known otherwise.

    Offline, and for a commit that the Hub could not confirm, the cache decides alone.

    **Cancellation:** nothing is left behind.

    **Raises:** as `resolve`; IncompatibleModelError, ModelFileNotFoundError; OfflineError, or why the commit is
    unconfirmed, where the cache can't decide.
    """
    found: SnapshotState = await run_owned(partial(snapshot_state, cache, resolution.commit, need), name="cache")
    cached_only = session.settings.offline or resolution.unconfirmed is not None
    if found.manifest is not None:
        if found.completeness is Completeness.COMPLETE or cached_only:
            known = resolution.listing.parameters if resolution.listing else {}
            return replace(found.manifest, listing=replace(found.manifest.listing, parameters=known))
    elif cached_only:
        raise _not_cached(cache, resolution, found.error)
    listing = resolution.listing or await listing_of(session, cache.repo_id, resolution.commit)
    manifest = await run_owned(partial(cached_manifest, cache, listing, need), name="plan")
    return await with_sizes(session, manifest)


async def manifest_of_choice(
    session: Session, cache: RepoCache, resolution: Resolution, patterns: Patterns
) -> Manifest:
    """The manifest of the files that match the patterns, sizes known. What a load needs plays no part.

    Offline and for an unconfirmed commit the choice is among the files that the disk knows, and must be complete.

    **Cancellation:** nothing is left behind.

    **Raises:** InvalidArgumentError when no file matches; else as `manifest_of`.
    """
    commit, repo_id = resolution.commit, cache.repo_id
    cached_only = session.settings.offline or resolution.unconfirmed is not None
    listing = resolution.listing
    if cached_only:
        listing = Listing(commit, await run_owned(partial(known_files, cache, commit), name="cache"))
    elif listing is None:
        listing = await listing_of(session, repo_id, commit)
    if cached_only and not listing.files:
        raise _not_cached(cache, resolution)
    chosen = patterns.choose(listing.files, model=repo_id)
    complete = await run_owned(lambda: all(cache.has(commit, file.path) for file in chosen), name="cache")
    if cached_only and not complete:
        raise _not_cached(cache, resolution)
    manifest = Manifest(repo_id, cache.snapshot(commit), listing, None, weights=chosen, sharp=True, complete=complete)
    return manifest if cached_only else await with_sizes(session, manifest)


async def with_sizes(session: Session, manifest: Manifest) -> Manifest:
    """The manifest with size and etag of every file, by one HEAD for each that a mirror's listing leaves out.

    **Cancellation:** nothing is left behind.

    **Raises:** as `yaie_async.fetch.metadata.complete`.
    """
    known: dict[str, RepoFile] = {}
    commit = manifest.commit
    assert commit is not None
    limiter = anyio.CapacityLimiter(session.max_connections)

    async def one(file: RepoFile) -> None:
        async with limiter:
            known[file.path] = await complete(session, manifest.model, commit, file)

    async with task_group() as group:
        for file in manifest.files:
            if file.size is None:
                group.start_soon(one, file)
    return manifest.with_sizes(known) if known else manifest


def check_may_fetch(session: Session, cache: RepoCache, resolution: Resolution) -> None:
    """Refuse to fetch where no request may be made, or the Hub has not confirmed the commit.

    Raises:
        OfflineError; or why the commit is unconfirmed.
    """
    if session.settings.offline or resolution.unconfirmed is not None:
        raise _not_cached(cache, resolution)


def _not_cached(cache: RepoCache, resolution: Resolution, error: LoaderError | None = None) -> LoaderError:
    """The error for what the cache lacks: what is wrong with the model, else why the Hub can't be asked."""
    if error is not None:
        return error
    if resolution.unconfirmed is not None:
        again = copy.copy(resolution.unconfirmed)  # every waiter has an instance of its own
        again.__cause__ = resolution.unconfirmed.__cause__
        return again
    return offline_error(cache.repo_id, f"commit {resolution.commit[:12]}")


def offline_error(repo_id: str, what: str) -> OfflineError:
    """The error for what is not cached where no request may be made."""
    return OfflineError(
        f"{repo_id} ({what}) is not whole in the cache, and no request may be made (HF_HUB_OFFLINE or "
        "local_files_only). Fetch it once while online: `yaie-async prefetch " + repo_id + "`.",
        model=repo_id,
    )
