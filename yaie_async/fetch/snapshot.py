"""From a manifest to a snapshot in the cache: one fetch of what is missing, each file linked when its turn has come."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import anyio.abc

from yaie_async.core.errors import DiskFullError, IntegrityError, UnsafeFileError
from yaie_async.core.log import logger
from yaie_async.core.manifest import ADAPTER_WEIGHTS, CONFIG, Manifest, RepoFile
from yaie_async.core.names import digest_kind
from yaie_async.core.progress import Meter
from yaie_async.core.tasks import task_group
from yaie_async.core.threads import run_owned
from yaie_async.fetch.blob import fetch_blob
from yaie_async.fetch.metadata import tree_of
from yaie_async.fetch.resolution import Resolution, refusal, with_sizes
from yaie_async.fetch.session import Session
from yaie_async.store.arriving_file import ArrivingFile
from yaie_async.store.cache import RepoCache
from yaie_async.store.claims import resumable_bytes
from yaie_async.store.completeness import mark_unproved, read_fetched, wait_for_clock_tick
from yaie_async.store.os_errors import free_bytes
from yaie_async.store.shared_blobs import has_store

# Called once all files but the weights are in the cache, with the sharp manifest and the weights that still arrive.
BeforeWeights = Callable[[Manifest], Awaitable[None]]
OnSmall = Callable[[Manifest, tuple[ArrivingFile, ...]], None]


async def fetch_snapshot(
    session: Session,
    cache: RepoCache,
    resolution: Resolution,
    manifest: Manifest,
    meter: Meter,
    before_weights: BeforeWeights,
    on_small: OnSmall = lambda *_: None,
) -> Manifest:
    """Make the snapshot hold the files of an incomplete manifest; return that manifest, sharp.

    As soon as all files but the weights are in the cache and linked, but for the last one, `before_weights` is awaited,
    and then `on_small` called. Where code is wanted, no weights are requested before; else they arrive meanwhile.

    **Cancellation:** finished files stay, partials are kept. `Manifest.last` is linked last, so what is not whole does
    not look it.

    **Raises:** every error of the fetch and store layers.
    """
    if (refused := refusal(session, cache, resolution)) is not None:
        raise refused
    return await _Fetch(session, cache, manifest, meter).run(resolution, before_weights, on_small)


class _Fetch:
    """One fetch of what a snapshot lacks: small files, then weights."""

    def __init__(self, session: Session, cache: RepoCache, manifest: Manifest, meter: Meter) -> None:
        assert manifest.commit is not None
        self._session = session
        self._cache = cache
        self._manifest = manifest
        self._commit = manifest.commit
        self._meter = meter
        self._checked: set[str] = set()  # paths of files for which the disk has been found to have room
        self._linked: set[str] = set()  # paths of files that the snapshot had when the fetch began
        self._fetched: set[str] = set()  # paths of small files that are in the cache by now
        self._fresh: set[str] = set()  # etags of the blobs that this fetch has written
        self._tree: Mapping[str, RepoFile] = {}  # the hashes by which other repositories may have the same bytes
        self._weights: dict[str, anyio.CancelScope] = {}
        self._arriving: dict[str, ArrivingFile] = {}
        self._small_linked = anyio.Event()
        # Each has a lock and two descriptors. As many wait ready as are fetched, so that no connection idles.
        self._open_files = anyio.CapacityLimiter(2 * session.max_connections)

    async def run(self, resolution: Resolution, before_weights: BeforeWeights, on_small: OnSmall) -> Manifest:
        self._meter.stage("downloading")
        await self._expect()
        await run_owned(partial(prepare, self._cache, resolution), name="prepare")
        if await run_owned(partial(has_store, self._cache.root), name="store"):
            self._tree = await tree_of(self._session, self._manifest.model, self._commit)
        async with task_group() as group:
            group.start_soon(self._session.downloader.clock)
            async with task_group() as weights:
                # At once, by their usual names: waiting for the index would leave the line idle. But code is first.
                at_once = self._manifest.need is None or not self._manifest.need.code
                while True:
                    if at_once:
                        self._start(weights)
                    await self._fetch_small()
                    if self._manifest.sharp:
                        break
                    await self._sharpen()  # twice, where config.json names an index of another name
                await run_owned(partial(self._link, self._manifest.small, last=False), name="link")
                self._small_linked.set()
                await before_weights(self._manifest)
                self._start(weights)
                on_small(self._manifest, tuple(self._arriving[file.path] for file in self._manifest.weights))
            group.cancel_scope.cancel()
        await run_owned(self._link_last, name="link")
        return self._manifest

    async def _sharpen(self) -> None:
        """Let config.json and the index decide, now that they are in the cache."""

        def read(file: RepoFile) -> bytes | None:
            return read_fetched(self._cache, self._commit, file) if file.path in self._fetched else None

        sharpened = partial(self._manifest.sharpened, read)
        self._manifest = await with_sizes(self._session, await run_owned(sharpened, name="plan"))
        await self._expect()

    async def _expect(self) -> None:
        """Count what is wanted, refuse what the disk has no room for, and note what is linked: in one hop for all."""
        files = self._manifest.files
        self._meter.expect(total=sum(file.size or 0 for file in files), files=len(files))
        new = tuple(file for file in files if file.path not in self._checked)
        check_digests(self._session, self._manifest, new)
        self._checked.update(file.path for file in new)

        def work() -> set[str]:
            check_disk(self._cache, self._commit, new)
            return {file.path for file in new if self._has(file)}

        if new:
            self._linked |= await run_owned(work, name="disk")

    def _start(self, group: anyio.abc.TaskGroup) -> None:
        """Start the weights that are wanted and not under way; stop those that are not wanted any more."""
        wanted = {file.path: file for file in self._manifest.weights}
        for path in self._weights.keys() - wanted.keys():
            self._weights.pop(path).cancel()
        for file in wanted.values():
            if file.path not in self._weights:
                assert file.etag is not None
                places = self._cache.blob(file.etag), self._cache.pointer(self._commit, file.path)
                self._arriving[file.path] = ArrivingFile(file.path, file.size or 0, *places)
                self._weights[file.path] = anyio.CancelScope()
                group.start_soon(self._weight, file, self._weights[file.path])

    async def _weight(self, file: RepoFile, scope: anyio.CancelScope) -> None:
        with scope:
            await self._fetch(file, self._arriving[file.path])
            await self._small_linked.wait()
            await run_owned(partial(self._link, (file,), last=False), name="link")

    async def _fetch_small(self) -> None:
        async with task_group() as group:
            for file in self._manifest.small:
                if file.path not in self._fetched:
                    self._fetched.add(file.path)
                    group.start_soon(self._fetch, file)

    async def _fetch(self, file: RepoFile, arriving: ArrivingFile | None = None) -> None:
        if file.candidate and (
            self._session.verify == "require" or self._manifest.runs_code(file) or _twins(file, self._manifest)
        ):
            file = replace(file, candidate=False)  # it has to match
        if file.path in self._tree:
            file = replace(file, xet_hash=self._tree[file.path].xet_hash)
        assert file.etag is not None
        async with self._open_files:
            if file.path in self._linked:
                self._meter.cached(file.size or 0)
            elif await fetch_blob(self._session, self._cache, self._commit, file, self._meter, arriving):
                self._fresh.add(file.etag)
            if arriving is not None:
                arriving.complete()

    def _has(self, file: RepoFile) -> bool:
        return self._cache.has(self._commit, file.path)

    def _link(self, files: tuple[RepoFile, ...], *, last: bool) -> None:
        """Link those of `files` that are linked last, or those that are not."""
        for file in files:
            if (file.path == self._manifest.last) is last and not self._has(file):
                assert file.etag is not None
                # Without symlinks the last file of the same content moves the blob.
                fresh = file.etag in self._fresh and all(map(self._has, _twins(file, self._manifest)))
                self._cache.link(self._commit, file.path, file.etag, fresh=fresh)

    def _link_last(self) -> None:
        if self._manifest.need is None:
            wait_for_clock_tick()
        self._link(self._manifest.files, last=True)
        if self._manifest.need is None and CONFIG in self._checked - self._linked:
            mark_unproved(self._cache, self._commit)
        if self._manifest.need is not None and CONFIG not in self._manifest.listing.files:
            self._cache.note_absent(self._commit, CONFIG)


def check_digests(session: Session, manifest: Manifest, files: tuple[RepoFile, ...]) -> None:
    """Say which weights come without a digest; refuse code and pickles without one by an UnsafeFileError.

    Raises IntegrityError for any file under `verify="require"`, and for one that shares its etag with another.
    """
    for file in files:
        if not session.verify or digest_kind(file.etag) is not None:
            continue
        what = f"{file.path} of {manifest.model} has no digest that its bytes can be checked by"
        advice = "Nothing of it was fetched. Use a Hub or mirror that names digests"
        found, where = file.etag or "no etag", {"model": manifest.model, "file": file.path}
        if session.verify == "require":
            text = f'{what}, and verify="require" was given. {advice}, or verify=True to load it unchecked.'
            raise IntegrityError(text, expected="a sha256 or a git sha1", found=found, **where)
        if twins := _twins(file, manifest):
            same = f"its ETag is that of {twins[0].path} too, so the two can't be told apart in the cache"
            raise IntegrityError(f"{what}, and {same}. {advice}.", expected="an ETag of its own", found=found, **where)
        if manifest.runs_code(file):
            trust = "if you trust this one, pass Hub(verify=False)"
            raise UnsafeFileError(f"{what}, so what it would run can't be trusted. {advice}; {trust}.", **where)
        if file in manifest.weights or file.path == ADAPTER_WEIGHTS:
            logger.warning("%s: they are taken as they come.", what, extra={**where, "stage": "downloading"})


def _twins(file: RepoFile, manifest: Manifest) -> list[RepoFile]:
    """The other files of the manifest that the server names by the same etag."""
    others = (*manifest.small, *manifest.weights)
    return [each for each in others if each.etag == file.etag and each.path != file.path]


def prepare(cache: RepoCache, resolution: Resolution) -> None:
    """Make the folders of a fetch, and the ref, unless that has moved on from the commit that it replaces."""
    cache.prepare(resolution.commit)
    # Another load may have resolved the ref since, and a loader may live for days.
    if cache.commit_of(resolution.revision) == resolution.replaces:
        cache.write_ref(resolution.revision, resolution.commit)


def bytes_missing(cache: RepoCache, commit: str, files: tuple[RepoFile, ...]) -> dict[Path, int]:
    """By blob, the bytes of `files` that the cache has neither linked, nor as a blob, nor in a resumable partial."""
    wanted = {file.etag: file for file in files if not cache.has(commit, file.path)}
    return {
        cache.blob(etag): (file.size or 0) - resumable_bytes(cache.blobs, etag, file.size or 0)
        for etag, file in wanted.items()
        if etag is not None and not cache.blob(etag).exists()
    }


def check_disk(cache: RepoCache, commit: str, files: tuple[RepoFile, ...]) -> None:
    """Refuse a fetch that the disk has no room for, before its first byte, by a DiskFullError."""
    needed, free = sum(bytes_missing(cache, commit, files).values()), free_bytes(cache.root)
    if free is None:
        text = "%s: how much is free at %s is not known; %s bytes are needed."
        facts = {"model": cache.repo_id, "stage": "downloading"}
        logger.info(text, cache.repo_id, cache.root, f"{needed:,}", extra=facts)
    elif needed > free:
        raise DiskFullError(
            f"{cache.repo_id} needs {needed:,} more bytes at {cache.root} and {free:,} are free. Nothing was "
            "fetched. Free some space, or set HF_HUB_CACHE (or cache_dir) to another disk.",
            needed=needed,
            free=free,
            path=str(cache.root),
            model=cache.repo_id,
        )
