"""Several models within one Hub: all are planned first, then fetched together."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio

from yaie_async.core.errors import DiskFullError, LoaderError, PrefetchError
from yaie_async.core.log import logger
from yaie_async.core.manifest import Manifest, Need
from yaie_async.core.progress import Meter, OnProgress
from yaie_async.core.tasks import SharedCall, task_group
from yaie_async.core.threads import run_owned
from yaie_async.fetch.patterns import Patterns
from yaie_async.fetch.session import Session
from yaie_async.loader.display import watching
from yaie_async.loader.files import ModelFiles, find_files
from yaie_async.loader.source import split_revision
from yaie_async.loader.text import size
from yaie_async.model.responsive import quick_switching
from yaie_async.store.os_errors import free_bytes


class Prefetch:
    """One call of `Hub.prefetch`, whose arguments it has."""

    def __init__(
        self,
        session: Session,
        names: Sequence[str],
        *,
        revision: str | None,
        need: Need,
        patterns: Patterns | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._session = session
        self._names = tuple(dict.fromkeys(names))
        self._need = need
        self._patterns = patterns  # which files instead of those that a load needs, or None
        self._on_progress = on_progress
        self._snapshots: dict[str, Path] = {}
        self._failures: dict[str, LoaderError] = {}
        # By model and revision: "gpt2" and "gpt2@main" are one model, whose bytes count once.
        self._models: dict[tuple[str, str], list[str]] = {}
        for name in self._names:
            try:
                model, own = split_revision(name)
            except LoaderError as error:
                self._failures[name] = error
            else:
                self._models.setdefault((model, own or revision or "main"), []).append(name)
        self._planned = {key: anyio.Event() for key in self._models}
        self._missing: dict[Path, int] = {}  # bytes to fetch, by blob
        self._room: SharedCall[None] = SharedCall()  # a check for all models

    async def run(self) -> dict[str, Path]:
        """Fetch them; return name -> snapshot folder.

        **Cancellation:** as `Hub.prefetch`.

        **Raises:** PrefetchError at the end, where one failed; for a single model, its own error.
        """
        with quick_switching():
            async with task_group() as group:
                for model, revision in self._models:
                    group.start_soon(self._one, model, revision)
        snapshots = {name: self._snapshots[name] for name in self._names if name in self._snapshots}
        failures = {name: self._failures[name] for name in self._names if name in self._failures}
        if not failures:
            return snapshots
        if len(self._models) <= 1 and len(set(failures.values())) == 1:
            raise failures[self._names[0]]
        reasons = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise PrefetchError(
            f"{len(failures)} of {len(self._names)} models could not be fetched. {reasons}",
            failures=failures,
            snapshots=snapshots,
        )

    async def _one(self, model: str, revision: str) -> None:
        names = self._models[model, revision]
        try:
            self._snapshots |= dict.fromkeys(names, await self._fetch(model, revision, name=names[0]))
        except LoaderError as error:
            self._failures |= dict.fromkeys(names, error)
        finally:
            self._planned[model, revision].set()  # a failure before the plan must not hold up the others

    async def _fetch(self, model: str, revision: str, *, name: str) -> Path:
        meter = Meter(name)
        async with watching(meter, self._on_progress):
            files = await find_files(self._session, model, revision, self._need)
            manifest = await files.manifest(self._session, self._need, self._patterns)
            try:
                self._missing.update(await files.missing(manifest))
                self._planned[model, revision].set()
                await self._room(self._check_room)
                manifest = await files.fetch(self._session, manifest, meter)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await _log_kept(name, files, manifest)
                raise
            meter.stage("ready")
            return manifest.folder

    async def _check_room(self) -> None:
        """Wait until all models are planned; raise where the disk has no room for all of them."""
        for planned in self._planned.values():
            await planned.wait()
        root = self._session.settings.cache_dir
        needed, free = sum(self._missing.values()), await run_owned(partial(free_bytes, root), name="disk")
        if free is not None and needed > free:
            raise DiskFullError(
                f"Together the models need {needed:,} more bytes at {root} and {free:,} are free. Nothing was fetched. "
                "Free some space, leave a model out, or set HF_HUB_CACHE (or cache_dir) to another disk.",
                needed=needed,
                free=free,
                path=str(root),
            )
        if len(self._models) > 1:
            facts = {"stage": "resolving", "bytes": needed}
            left = "free space unknown" if free is None else f"{size(free)} free"
            logger.info("%d models: %s to fetch, %s", len(self._models), size(needed), left, extra=facts)


async def _log_kept(name: str, files: ModelFiles, manifest: Manifest) -> None:
    """Log how much of a fetch that is stopped is on the disk."""
    whole = sum(file.size or 0 for file in manifest.files)
    with suppress(LoaderError):  # the cache can't be read any more
        kept = whole - sum((await files.missing(manifest)).values())
        facts = {"model": name, "stage": "downloading", "bytes": kept, "bytes_total": whole}
        if whole and manifest.commit is not None:
            logger.info("%s: stopped; %s of %s are kept", name, size(kept), size(whole), extra=facts)
