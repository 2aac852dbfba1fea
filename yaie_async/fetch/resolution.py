"""What a revision stands for, and the manifest of a load or of a choice at its commit."""

import copy
from dataclasses import dataclass, replace
from functools import partial

import anyio

from yaie_async.core.errors import GatedModelError, HubUnavailableError, LoaderError, ModelNotFoundError, OfflineError
from yaie_async.core.log import logger
from yaie_async.core.manifest import Listing, Manifest, Need, RepoFile, check_small
from yaie_async.core.names import is_commit
from yaie_async.core.tasks import task_group
from yaie_async.core.threads import run_owned
from yaie_async.fetch.metadata import commit_of, complete, listing_of, tree_of
from yaie_async.fetch.patterns import Patterns
from yaie_async.fetch.session import Session
from yaie_async.store.cache import RepoCache
from yaie_async.store.completeness import Completeness, SnapshotState, cached_manifest, snapshot_state

# Errors after which a cached snapshot is as good as before: the Hub is down, or no longer gives access.
_FALL_BACK = (HubUnavailableError, GatedModelError, ModelNotFoundError)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a revision stands for."""

    revision: str  # what was asked for
    commit: str  # 40 hex digits
    listing: Listing | None = None  # its files, where the Hub was asked for them
    unconfirmed: LoaderError | None = None  # why the Hub could not confirm the commit, which is then the cache's
    replaces: str | None = None  # the commit that the cache had for the revision before the Hub was asked


async def resolve(session: Session, cache: RepoCache, revision: str, need: Need) -> Resolution:
    """Find the commit: no request offline or by a cached commit, one small one by a cached branch, one otherwise.

    **Cancellation:** nothing is left behind.

    **Raises:** OfflineError, ModelNotFoundError, RevisionNotFoundError, GatedModelError, HubUnavailableError,
    UnsafeFileError.
    """
    commit, completeness = await run_owned(partial(_cached, cache, revision, need), name="cache")
    if session.settings.offline:
        if commit is None:
            raise _offline_error(cache, f"revision {revision!r}")
        return Resolution(revision, commit)
    whole = commit if completeness is Completeness.COMPLETE else None
    if whole is not None and is_commit(revision):
        return Resolution(revision, whole)
    try:
        if whole is not None and await commit_of(session, cache.repo_id, revision) == whole:
            return Resolution(revision, whole)
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
    refused = refusal(session, cache, resolution)
    if found.manifest is not None:
        if found.completeness is Completeness.COMPLETE or refused is not None:
            known = resolution.listing.parameters if resolution.listing else {}
            return replace(found.manifest, listing=replace(found.manifest.listing, parameters=known))
    elif refused is not None:
        raise found.error or refused  # what is wrong with the model comes first
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
    refused = refusal(session, cache, resolution)
    if refused is None:
        listing = resolution.listing or await listing_of(session, repo_id, commit)
    else:
        listing = Listing(commit, await run_owned(lambda: cache.tree(commit) or cache.files(commit), name="cache"))
        if not listing.files:
            raise refused
    chosen = patterns.choose(listing.files, model=repo_id)
    complete = await run_owned(lambda: all(cache.has(commit, file.path) for file in chosen), name="cache")
    if refused is not None and not complete:
        raise refused
    manifest = Manifest(repo_id, cache.snapshot(commit), listing, None, weights=chosen, sharp=True, complete=complete)
    return manifest if refused is not None else await with_sizes(session, manifest)


async def with_sizes(session: Session, manifest: Manifest) -> Manifest:
    """The manifest with size and etag of every file.

    What a mirror leaves out of the first listing comes from that of the tree, else by a HEAD for each file.

    **Cancellation:** nothing is left behind.

    **Raises:** as `yaie_async.fetch.metadata.complete` and `check_small`.
    """
    known: dict[str, RepoFile] = {}
    commit = manifest.commit
    assert commit is not None
    limiter = anyio.CapacityLimiter(session.max_connections)

    async def one(file: RepoFile) -> None:
        async with limiter:
            known[file.path] = await complete(session, manifest.model, commit, file)

    if lacking := {file.path for file in manifest.files if file.size is None}:
        tree = await tree_of(session, manifest.model, commit)
        known |= {path: tree[path] for path in lacking & tree.keys()}
    async with task_group() as group:
        for file in manifest.files:
            if known.get(file.path, file).size is None:
                group.start_soon(one, file)
    if known:
        manifest = manifest.with_sizes(known)
        check_small(manifest.small, model=manifest.model)
    return manifest


def refusal(session: Session, cache: RepoCache, resolution: Resolution) -> LoaderError | None:
    """Why nothing may be fetched: offline, or the Hub has not confirmed the commit; None where it may be asked."""
    if resolution.unconfirmed is not None:
        again = copy.copy(resolution.unconfirmed)  # every waiter has an instance of its own
        again.__cause__ = resolution.unconfirmed.__cause__
        return again
    if session.settings.offline:
        return _offline_error(cache, f"commit {resolution.commit[:12]}")
    return None


def _offline_error(cache: RepoCache, what: str) -> OfflineError:
    return OfflineError(
        f"{cache.repo_id} ({what}) is not whole in the cache, and no request may be made (HF_HUB_OFFLINE or "
        f"local_files_only). Fetch it once while online: `yaie-async prefetch {cache.repo_id}`.",
        model=cache.repo_id,
    )
