"""The files of one model, on the Hub or in a directory, behind one face."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from yaie_async.core.plan import Plan, PlannedFile, RepoFile, Wanted, WeightRules, choose
from yaie_async.core.progress import Meter
from yaie_async.core.threads import run_owned
from yaie_async.fetch.selection import Patterns, choose_files, fetch_chosen
from yaie_async.fetch.session import Session
from yaie_async.fetch.snapshot import Need, Resolution, bytes_missing, ensure, listing_for, resolve
from yaie_async.loader.source import Directory, find_source
from yaie_async.model.memory import estimate_memory
from yaie_async.model.request import BuildRequest
from yaie_async.store.arriving_file import ArrivingFile
from yaie_async.store.cache import RepoCache, files_below
from yaie_async.store.completeness import read_json
from yaie_async.store.os_errors import free_bytes

# Told of the weights that are still landing once all other files are there.
OnSmall = Callable[[tuple[ArrivingFile, ...]], None]


@dataclass(frozen=True, slots=True)
class HubFiles:
    """A model on the Hub, its revision resolved.

    Attributes:
        cache: its folder in the cache.
        revision: what was asked for.
        resolution: what that stands for.
        code: whether its `.py` files are wanted.
        rules: which weights are.
    """

    cache: RepoCache
    revision: str
    resolution: Resolution
    code: bool
    rules: WeightRules

    @property
    def commit(self) -> str:
        return self.resolution.commit

    @property
    def confirmed(self) -> bool:
        """Whether the Hub stands behind the commit, not only the cache."""
        return self.resolution.unconfirmed is None

    async def ensure(
        self, session: Session, meter: Meter, *, weights: bool, on_small: OnSmall = lambda _: None
    ) -> Path:
        """As `yaie_async.fetch.snapshot.ensure`."""
        return await ensure(
            session,
            self.cache,
            self.resolution,
            revision=self.revision,
            need=Need(weights, self.code, self.rules),
            meter=meter,
            on_small=on_small,
        )

    @property
    def parameters(self) -> Mapping[str, int]:
        """The Hub's count of parameters by safetensors dtype, empty where it has not said."""
        return self.resolution.listing.parameters if self.resolution.listing else {}

    async def wanted(self, session: Session, patterns: Patterns | None) -> tuple[HubFiles, tuple[RepoFile, ...]]:
        """What a prefetch makes the snapshot hold, sizes known, and this with its listing: that is asked for once.

        **Raises:** as `prefetch`.
        """
        files: tuple[RepoFile, ...]
        if patterns is None:
            need = Need(weights=True, code=self.code, rules=self.rules)
            listing, wanted = await listing_for(session, self.cache, self.resolution, need)
            files = wanted.files
        else:
            listing, files = await choose_files(session, self.cache, self.resolution, patterns)
        return replace(self, resolution=replace(self.resolution, listing=listing)), files

    async def missing(self, files: tuple[RepoFile, ...]) -> Mapping[Path, int]:
        """How many bytes of `files` the disk lacks, by blob. Makes no request."""
        return await run_owned(partial(bytes_missing, self.cache, self.commit, files), name="disk")

    async def prefetch(self, session: Session, meter: Meter, patterns: Patterns | None) -> Path:
        """What a load needs, or what the patterns choose.

        **Raises:** as `ensure`; InvalidArgumentError when no file matches.
        """
        if patterns is None:
            return await self.ensure(session, meter, weights=True)
        _, files = await choose_files(session, self.cache, self.resolution, patterns)
        await fetch_chosen(session, self.cache, self.resolution, files, revision=self.revision, meter=meter)
        return self.cache.snapshot(self.commit)

    def config(self) -> dict[str, Any] | None:
        """The parsed config.json, once it is in the cache."""
        listing = self.resolution.listing
        file = listing.files["config.json"] if listing else RepoFile("config.json")
        config = read_json(self.cache, self.commit, file)
        return config if isinstance(config, dict) else None

    def request(self, **options: Any) -> BuildRequest:
        return BuildRequest(self.cache.repo_id, self.commit, str(self.cache.root), **options)

    async def plan(self, session: Session, dtype: Any) -> Plan:
        listing, wanted = await listing_for(
            session, self.cache, self.resolution, Need(weights=True, code=self.code, rules=self.rules)
        )

        def work() -> Plan:
            config = self.config() or {}
            stored = listing.parameters or config.get("dtype") or config.get("torch_dtype")
            return Plan(
                model=self.cache.repo_id,
                revision=self.revision,
                commit=self.commit,
                files=tuple(
                    PlannedFile(
                        file.path,
                        file.size or 0,
                        self.cache.has(self.commit, file.path)
                        or (file.etag is not None and self.cache.blob(file.etag).exists()),
                    )
                    for file in wanted.files
                ),
                free_disk=free_bytes(self.cache.root),
                memory=estimate_memory(sum(file.size or 0 for file in wanted.weights), dtype, stored),
            )

        return await run_owned(work, name="plan")


@dataclass(frozen=True, slots=True)
class DirectoryFiles:
    """A model in a directory."""

    path: Path
    code: bool
    rules: WeightRules
    commit: None = None
    confirmed: bool = True
    parameters: Mapping[str, int] = field(default_factory=dict)

    async def ensure(
        self, _session: Session, meter: Meter, *, weights: bool, on_small: OnSmall = lambda _: None
    ) -> Path:
        """The directory itself, once it is known to have what is needed.

        **Raises:** IncompatibleModelError, UnsafeFileError, ModelFileNotFoundError when it is no whole model.
        """

        def sizes() -> list[int]:
            return [file.size or 0 for file in self._wanted(weights=weights).files]

        found = await run_owned(sizes, name="directory")
        meter.expect(total=sum(found), files=len(found))
        for size in found:
            meter.cached(size)
        on_small(())
        return self.path

    async def wanted(
        self, _session: Session, _patterns: Patterns | None
    ) -> tuple[DirectoryFiles, tuple[RepoFile, ...]]:
        """Nothing is ever fetched."""
        return self, ()

    async def missing(self, _files: tuple[RepoFile, ...]) -> Mapping[Path, int]:
        """Nothing is."""
        return {}

    async def prefetch(self, session: Session, meter: Meter, _patterns: Patterns | None) -> Path:
        """The directory itself, as `ensure`: patterns choose among what is fetched, and nothing is."""
        return await self.ensure(session, meter, weights=True)

    def config(self) -> dict[str, Any] | None:
        config = self._json("config.json")
        return config if isinstance(config, dict) else None

    def request(self, **options: Any) -> BuildRequest:
        return BuildRequest(str(self.path), **options)

    async def plan(self, _session: Session, dtype: Any) -> Plan:
        def work() -> Plan:
            wanted = self._wanted(weights=True)
            config = self.config() or {}
            size = sum(file.size or 0 for file in wanted.weights)
            return Plan(
                model=str(self.path),
                revision=None,
                commit=None,
                files=tuple(PlannedFile(file.path, file.size or 0, cached=True) for file in wanted.files),
                free_disk=free_bytes(self.path),
                memory=estimate_memory(size, dtype, config.get("dtype") or config.get("torch_dtype")),
            )

        return await run_owned(work, name="plan")

    def _wanted(self, *, weights: bool) -> Wanted:
        return choose(
            files_below(self.path),
            weights=weights,
            code=self.code,
            rules=self.rules,
            model=str(self.path),
            read_json=lambda file: self._json(file.path),
        )

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None


ModelFiles = HubFiles | DirectoryFiles


async def find_files(
    session: Session,
    model: str | os.PathLike[str],
    revision: str | None,
    *,
    code: bool,
    rules: WeightRules,
) -> ModelFiles:
    """Decide where a model is, and resolve its revision.

    **Raises:** as `find_source` and `yaie_async.fetch.snapshot.resolve`.
    """
    source = await run_owned(partial(find_source, model, revision), name="source")
    if isinstance(source, Directory):
        return DirectoryFiles(source.path, code, rules)
    cache = RepoCache(session.settings.cache_dir, source.repo_id)
    # What the tokenizer needs is enough to ask by the small request: `ensure` finds out about the weights.
    resolution = await resolve(session, cache, source.revision, Need(weights=False, code=code, rules=rules))
    return HubFiles(cache, source.revision, resolution, code, rules)
