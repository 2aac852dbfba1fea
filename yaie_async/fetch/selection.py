"""Files chosen by patterns, as `hf download --include --exclude` chooses them: what a load needs plays no part."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import anyio
from huggingface_hub.utils import filter_repo_objects

from yaie_async.core.errors import InvalidArgumentError
from yaie_async.core.plan import Listing, RepoFile
from yaie_async.core.progress import Meter
from yaie_async.core.tasks import task_group
from yaie_async.core.threads import run_owned
from yaie_async.fetch.blob import fetch_blob
from yaie_async.fetch.metadata import listing_of
from yaie_async.fetch.session import Session
from yaie_async.fetch.snapshot import Resolution, check_disk, completed, known_files, offline_error, prepare
from yaie_async.store.cache import RepoCache

_PROOF = "tokenizer_config.json"
_TICK = 0.02  # seconds: the times of files step by 10 ms at the most


@dataclass(frozen=True, slots=True)
class Patterns:
    """Which files of a repository.

    Attributes:
        include: a file matches one of these; empty for all files.
        exclude: and none of these.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def choose(self, files: Mapping[str, RepoFile], *, model: str) -> tuple[RepoFile, ...]:
        """Those that match, by the official client's own rules.

        Raises:
            InvalidArgumentError: when none does.
        """
        include = list(self.include) or None
        paths = list(filter_repo_objects(files, allow_patterns=include, ignore_patterns=list(self.exclude)))
        if not paths:
            wanted = f"include {', '.join(self.include) or '*'}; exclude {', '.join(self.exclude) or 'nothing'}"
            there = ", ".join(sorted(files)[:5]) + (", ..." if len(files) > 5 else "")
            raise InvalidArgumentError(f"No file of {model} matches ({wanted}). It has {there}.", model=model)
        return tuple(files[path] for path in paths)


async def choose_files(
    session: Session, cache: RepoCache, resolution: Resolution, patterns: Patterns
) -> tuple[Listing, tuple[RepoFile, ...]]:
    """The listing of a resolved commit and what is chosen of it, sizes known.

    Offline and for an unconfirmed commit the listing is what the disk tells, and all of the choice is there.

    **Raises:** InvalidArgumentError when no file matches; else as `yaie_async.fetch.snapshot.ensure`.
    """
    commit, repo_id = resolution.commit, cache.repo_id
    cached_only = session.settings.offline or resolution.unconfirmed is not None
    listing = resolution.listing
    if cached_only:
        files = await run_owned(partial(known_files, cache, commit), name="cache")
        listing = Listing(commit, files, {})
    elif listing is None:
        listing = await listing_of(session, repo_id, commit)
    if not cached_only or listing.files:
        chosen = patterns.choose(listing.files, model=repo_id)
        if cached_only and await run_owned(partial(_has_all, cache, commit, chosen), name="cache"):
            return listing, chosen
    if resolution.unconfirmed is not None:
        raise copy.copy(resolution.unconfirmed) from resolution.unconfirmed.__cause__
    if cached_only:
        raise offline_error(repo_id, f"commit {commit[:12]}")
    listing = await completed(session, repo_id, listing, chosen)
    return listing, tuple(listing.files[file.path] for file in chosen)


async def fetch_chosen(
    session: Session,
    cache: RepoCache,
    resolution: Resolution,
    files: tuple[RepoFile, ...],
    *,
    revision: str,
    meter: Meter,
) -> None:
    """Make the snapshot hold `files`, sizes known, each linked as soon as it is there.

    **Cancellation:** what is linked stays, partials are kept.

    **Raises:** every error of the fetch and store layers.
    """
    commit = resolution.commit
    meter.expect(total=sum(file.size or 0 for file in files), files=len(files))
    missing = await run_owned(lambda: [f for f in files if not cache.has(commit, f.path)], name="cache")
    for file in files:
        if file not in missing:
            meter.cached(file.size or 0)
    if not missing:
        return
    meter.stage("downloading")
    await run_owned(partial(check_disk, cache, commit, files), name="disk")
    await run_owned(partial(prepare, cache, commit, revision, resolution.replaces), name="prepare")
    open_files = anyio.CapacityLimiter(2 * session.max_connections)
    late: list[Callable[[], None]] = []

    async def one(twins: list[RepoFile]) -> None:
        first, *others = twins
        async with open_files:
            fresh = await fetch_blob(session, cache, commit, first, meter, weights=True)
            for file in others:
                meter.cached(file.size or 0)
            link = partial(_link, cache, commit, twins, fresh=fresh)
            if any(file.path == _PROOF for file in twins):
                late.append(link)
            else:
                await run_owned(link, name="link")

    by_etag: dict[str, list[RepoFile]] = {}
    for file in missing:
        assert file.etag is not None  # its size is known
        by_etag.setdefault(file.etag, []).append(file)
    async with task_group() as group:
        group.start_soon(session.downloader.clock)
        async with task_group() as bodies:
            for same in by_etag.values():
                bodies.start_soon(one, same)
        group.cancel_scope.cancel()
    new_config = any(file.path == "config.json" for file in missing)
    await run_owned(partial(_link_late, cache, commit, late, disprove=new_config), name="link")


def _has_all(cache: RepoCache, commit: str, files: Iterable[RepoFile]) -> bool:
    return all(cache.has(commit, file.path) for file in files)


def _link(cache: RepoCache, commit: str, twins: list[RepoFile], *, fresh: bool) -> None:
    missing = [file for file in twins if not cache.has(commit, file.path)]
    for file in missing:
        assert file.etag is not None
        # Without symlinks the last one moves the blob.
        cache.link(commit, file.path, file.etag, fresh=fresh and file is missing[-1])


def _link_late(cache: RepoCache, commit: str, links: Iterable[Callable[[], None]], *, disprove: bool) -> None:
    """Link tokenizer_config.json after config.json, or make it look so.

    The other order, in which a load links them, is its proof that the small files are whole. A choice by patterns
    proves nothing.
    """
    time.sleep(_TICK)
    for link in links:
        link()
    if disprove:
        with suppress(OSError):  # it is not there, or belongs to another user, who has an order of his own
            os.utime(cache.pointer(commit, _PROOF), follow_symlinks=False)
