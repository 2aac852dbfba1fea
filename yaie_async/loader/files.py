"""Where the files of one model are, the Hub or a directory. They differ only in how a manifest is made."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from yaie_async.core.errors import CacheAccessError
from yaie_async.core.log import logger
from yaie_async.core.manifest import Manifest, Need
from yaie_async.core.names import digest_kind
from yaie_async.core.plan import Plan, PlannedFile
from yaie_async.core.progress import Meter
from yaie_async.core.threads import run_owned
from yaie_async.fetch.code import fetch_code
from yaie_async.fetch.patterns import Patterns
from yaie_async.fetch.resolution import Resolution, manifest_of, manifest_of_choice, resolve
from yaie_async.fetch.session import Session
from yaie_async.fetch.snapshot import OnSmall, bytes_missing, check_digests, fetch_snapshot
from yaie_async.loader.source import find_source
from yaie_async.model.estimate import estimate_memory
from yaie_async.store.cache import RepoCache
from yaie_async.store.completeness import usable_manifest
from yaie_async.store.directory import directory_manifest
from yaie_async.store.os_errors import free_bytes


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on the Hub, its revision resolved, or in a directory, of which nothing is ever fetched."""

    place: RepoCache | Path  # its folder in the cache; the directory
    resolution: Resolution | None = None  # what its revision stands for; None for a directory

    @property
    def commit(self) -> str | None:
        return self.resolution.commit if self.resolution else None

    async def manifest(self, session: Session, need: Need, patterns: Patterns | None = None) -> Manifest:
        """What is wanted: the files of a load, or those that the patterns choose. These choose nothing in a directory.

        **Cancellation:** nothing is left behind.

        **Raises:** as `manifest_of`, `manifest_of_choice` and `directory_manifest`.
        """
        if isinstance(self.place, Path):
            return await run_owned(partial(directory_manifest, self.place, need), name="directory")
        assert self.resolution is not None
        if patterns is None:
            return await manifest_of(session, self.place, self.resolution, need)
        return await manifest_of_choice(session, self.place, self.resolution, patterns)

    async def fetch(
        self, session: Session, manifest: Manifest, meter: Meter, on_small: OnSmall = lambda *_: None
    ) -> Manifest:
        """Make the folder of the manifest hold its files; return it sharp.

        **Cancellation:** finished files stay, partials are kept.

        **Raises:** as `yaie_async.fetch.snapshot.fetch_snapshot`.
        """
        code = partial(fetch_code, session)
        if isinstance(self.place, RepoCache) and not manifest.complete:
            assert self.resolution is not None
            usable = await self._usable(manifest, manifest.need) if manifest.need else None
            if usable is None:
                return await fetch_snapshot(session, self.place, self.resolution, manifest, meter, code, on_small)
            manifest = usable
        if session.verify == "require" and isinstance(self.place, RepoCache):
            # The name of a linked blob; a file that is no link was checked when it came.
            check_digests(session, manifest, tuple(file for file in manifest.files if file.etag is not None))
        meter.expect(total=sum(file.size or 0 for file in manifest.files), files=len(manifest.files))
        for file in manifest.files:
            meter.cached(file.size or 0)
        await code(manifest)
        on_small(manifest, ())
        return manifest

    async def _usable(self, manifest: Manifest, need: Need) -> Manifest | None:
        """What a cache that can't be written has already, if that is enough for the load."""
        assert isinstance(self.place, RepoCache)
        assert self.resolution is not None
        usable = await run_owned(partial(usable_manifest, self.place, self.resolution.commit, need), name="cache")
        if usable is not None:
            there = {file.path for file in usable.files}
            lacks = ", ".join(file.path for file in manifest.files if file.path not in there)
            logger.warning(
                "%s: the cache at %s can't be written, so its snapshot %s is used as it is%s.",
                *(manifest.model, self.place.root, (usable.commit or "")[:12], f", without {lacks}" if lacks else ""),
                extra={"model": manifest.model, "stage": "downloading"},
            )
        return usable

    async def missing(self, manifest: Manifest) -> Mapping[Path, int]:
        """How many bytes of the files the disk lacks, by blob. Makes no request.

        **Cancellation:** the thread ends by itself.

        **Raises:** CacheAccessError when the cache can't be read.
        """
        if self.resolution is None or isinstance(self.place, Path):
            return {}
        return await run_owned(partial(bytes_missing, self.place, self.resolution.commit, manifest.files), name="disk")

    async def plan(self, manifest: Manifest, dtype: Any) -> Plan:
        """What a load of `manifest` would do. Makes no request.

        **Cancellation:** the thread ends by itself.

        **Raises:** nothing.
        """

        def is_cached(path: str, etag: str | None) -> bool:
            if manifest.complete or isinstance(self.place, Path) or manifest.commit is None:
                return True
            return self.place.has(manifest.commit, path) or (etag is not None and self.place.blob(etag).exists())

        def work() -> Plan:
            return Plan(
                model=manifest.model,
                revision=self.resolution.revision if self.resolution else None,
                commit=manifest.commit,
                files=tuple(
                    PlannedFile(
                        file.path,
                        file.size or 0,
                        is_cached(file.path, file.etag),
                        digest_kind(file.etag)
                        if self.resolution and not file.candidate
                        else None,  # a directory's links may be named like one
                    )
                    for file in manifest.files
                ),
                free_disk=free_bytes(manifest.folder),
                memory=estimate_memory(manifest.size, dtype, manifest.stored),
            )

        return await run_owned(work, name="plan")


async def find_files(session: Session, model: str | os.PathLike[str], revision: str | None, need: Need) -> ModelFiles:
    """Decide where a model is, and resolve its revision.

    **Cancellation:** nothing is left behind.

    **Raises:** as `find_source` and `yaie_async.fetch.resolution.resolve`.
    """
    source = await run_owned(partial(find_source, model, revision, session.settings.endpoint), name="source")
    if isinstance(source, Path):
        return ModelFiles(source)
    cache = RepoCache(session.settings.cache_dir, source.repo_id)
    # The cache of a tokenizer is enough to ask by the small request; the manifest looks at the weights.
    resolution = await resolve(session, cache, source.revision, replace(need, weights=False))
    return ModelFiles(cache, await run_owned(partial(_kept_back, cache, resolution, need), name="cache"))


def _kept_back(cache: RepoCache, resolution: Resolution, need: Need) -> Resolution:
    """The commit before, for model and tokenizer, where the branch has moved on and the cache can't be written."""
    before = resolution.replaces
    if before in (None, resolution.commit) or usable_manifest(cache, resolution.commit, need) is not None:
        return resolution
    if usable_manifest(cache, before, need) is None:
        return resolution
    message = f"The cache at {cache.root} can't be written, so {cache.repo_id} stays at its commit {before}."
    facts = {"model": cache.repo_id, "stage": "resolving"}
    logger.warning("%s", message, extra=facts)
    return replace(resolution, commit=before, listing=None, unconfirmed=CacheAccessError(message, path=str(cache.root)))
