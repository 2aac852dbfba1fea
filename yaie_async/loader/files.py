"""Where the files of one model are, the Hub or a directory. They differ only in how a manifest is made."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from yaie_async.core.manifest import Manifest, Need, RepoFile
from yaie_async.core.plan import Plan, PlannedFile
from yaie_async.core.progress import Meter
from yaie_async.core.threads import run_owned
from yaie_async.fetch.patterns import Patterns
from yaie_async.fetch.resolution import Resolution, manifest_of, manifest_of_choice, resolve
from yaie_async.fetch.session import Session
from yaie_async.fetch.snapshot import OnSmall, bytes_missing, fetch_snapshot
from yaie_async.loader.source import Directory, find_source
from yaie_async.model.estimate import estimate_memory
from yaie_async.store.cache import RepoCache
from yaie_async.store.directory import directory_manifest
from yaie_async.store.os_errors import free_bytes


@dataclass(frozen=True, slots=True)
class HubFiles:
    """A model on the Hub, its revision resolved.

    Attributes:
        cache: its folder in the cache.
        resolution: what its revision stands for.
    """

    cache: RepoCache
    resolution: Resolution

    @property
    def commit(self) -> str:
        return self.resolution.commit

    async def manifest(self, session: Session, need: Need, patterns: Patterns | None = None) -> Manifest:
        """What is wanted: the files of a load, or those that the patterns choose.

        **Cancellation:** nothing is left behind.

        **Raises:** as `yaie_async.fetch.resolution.manifest_of` and `manifest_of_choice`.
        """
        if patterns is None:
            return await manifest_of(session, self.cache, self.resolution, need)
        return await manifest_of_choice(session, self.cache, self.resolution, patterns)

    async def fetch(
        self, session: Session, manifest: Manifest, meter: Meter, on_small: OnSmall = lambda _manifest, _arriving: None
    ) -> Manifest:
        """Make the folder of the manifest hold its files; return it sharp.

        **Cancellation:** finished files stay, partials are kept.

        **Raises:** as `yaie_async.fetch.snapshot.fetch_snapshot`.
        """
        if manifest.complete:
            return _all_there(manifest, meter, on_small)
        return await fetch_snapshot(session, self.cache, self.resolution, manifest, meter, on_small)

    async def missing(self, manifest: Manifest) -> Mapping[Path, int]:
        """How many bytes of the files the disk lacks, by blob. Makes no request.

        **Cancellation:** the thread ends by itself.

        **Raises:** CacheAccessError when the cache can't be read.
        """
        return await run_owned(partial(bytes_missing, self.cache, self.commit, manifest.files), name="disk")

    def has(self, file: RepoFile) -> bool:
        """Whether the cache has a file, linked or only as a blob. Blocks."""
        linked = self.cache.has(self.commit, file.path)
        return linked or (file.etag is not None and self.cache.blob(file.etag).exists())


@dataclass(frozen=True, slots=True)
class DirectoryFiles:
    """A model in a directory. Nothing of it is ever fetched."""

    path: Path
    commit: None = None
    resolution: None = None

    async def manifest(self, _session: Session, need: Need, _patterns: Patterns | None = None) -> Manifest:
        """What a load reads, whatever the patterns: these choose among what is fetched.

        **Cancellation:** the thread ends by itself.

        **Raises:** as `yaie_async.store.directory.directory_manifest`.
        """
        return await run_owned(partial(directory_manifest, self.path, need), name="directory")

    async def fetch(
        self, _session: Session, manifest: Manifest, meter: Meter, on_small: OnSmall = lambda _manifest, _arriving: None
    ) -> Manifest:
        """The manifest itself: its folder is the directory.

        **Cancellation:** never waits.

        **Raises:** nothing.
        """
        return _all_there(manifest, meter, on_small)

    async def missing(self, _manifest: Manifest) -> Mapping[Path, int]:
        """Nothing is missing.

        **Cancellation:** never waits.

        **Raises:** nothing.
        """
        return {}

    def has(self, _file: RepoFile) -> bool:
        """Every file of the manifest."""
        return True


ModelFiles = HubFiles | DirectoryFiles


async def find_files(session: Session, model: str | os.PathLike[str], revision: str | None, need: Need) -> ModelFiles:
    """Decide where a model is, and resolve its revision.

    **Cancellation:** nothing is left behind.

    **Raises:** as `find_source` and `yaie_async.fetch.resolution.resolve`.
    """
    source = await run_owned(partial(find_source, model, revision), name="source")
    if isinstance(source, Directory):
        return DirectoryFiles(source.path)
    cache = RepoCache(session.settings.cache_dir, source.repo_id)
    # The cache of a tokenizer is enough to ask by the small request; the manifest looks at the weights.
    return HubFiles(cache, await resolve(session, cache, source.revision, replace(need, weights=False)))


async def plan_of(files: ModelFiles, manifest: Manifest, dtype: Any) -> Plan:
    """What a load of `manifest` would do. Makes no request.

    **Cancellation:** the thread ends by itself.

    **Raises:** nothing.
    """

    def work() -> Plan:
        cached = {file.path for file in manifest.files if manifest.complete or files.has(file)}
        return Plan(
            model=manifest.model,
            revision=files.resolution.revision if files.resolution else None,
            commit=manifest.commit,
            files=tuple(PlannedFile(file.path, file.size or 0, file.path in cached) for file in manifest.files),
            free_disk=free_bytes(manifest.folder),
            memory=estimate_memory(manifest.size, dtype, manifest.stored),
        )

    return await run_owned(work, name="plan")


def _all_there(manifest: Manifest, meter: Meter, on_small: OnSmall) -> Manifest:
    meter.expect(total=sum(file.size or 0 for file in manifest.files), files=len(manifest.files))
    for file in manifest.files:
        meter.cached(file.size or 0)
    on_small(manifest, ())
    return manifest
