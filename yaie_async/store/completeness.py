"""How complete a cached snapshot is for a load, judged by the disk alone."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

from yaie_async.core.errors import LoaderError, ModelFileNotFoundError
from yaie_async.core.manifest import CONFIG, TOKENIZER_CONFIG, Listing, Manifest, Need, RepoFile, draft
from yaie_async.store.cache import RepoCache
from yaie_async.store.directory import read_bytes
from yaie_async.store.diskio import read_regular

_CLOCK_TICK = 0.02  # seconds: file systems advance the times of files in steps of 10 ms at most


class Completeness(Enum):
    """How much of a load the cache has."""

    MISSING = "a file that the load needs is missing"
    USABLE = "no file is known to be missing, but nothing proves that all exist: enough to load offline"
    COMPLETE = "all files of the manifest exist"


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """What the cache has of a load."""

    completeness: Completeness
    manifest: Manifest | None = None  # None where the cache does not suffice to choose the files
    error: LoaderError | None = None  # why it can't be loaded even if the repository has more files, where known


def snapshot_state(cache: RepoCache, commit: str, need: Need) -> SnapshotState:
    """Which files of a load the snapshot of `commit` has. Blocks.

    The official client's listing proves completeness. Without it, the index or the single file proves the weights, and
    the order in which this package links proves the small files: tokenizer_config.json after all others, then
    config.json. Clients that fetch file by file link in another order (transformers begins with these two). The order
    says nothing about code files, so a load with code is never proved complete by it.
    """
    tree, present = cache.tree(commit), cache.files(commit)
    if CONFIG not in present and tree is None and (need.weights or not cache.lacks(commit, CONFIG)):
        return SnapshotState(Completeness.MISSING)
    try:
        manifest = cached_manifest(cache, Listing(commit, tree or present), need)
    except LoaderError as error:
        # The content of a JSON file decides for good. A missing file may be on the Hub, unless its listing is known.
        content = not isinstance(error, ModelFileNotFoundError) and (error.file or "").endswith(".json")
        final = tree is not None or content
        return SnapshotState(Completeness.MISSING, error=error if final else None)
    if not manifest.sharp or any(file.path not in present for file in manifest.files):
        return SnapshotState(Completeness.MISSING, manifest)
    # Without the index: it proves itself, and is linked late where the tokenizer was fetched first.
    small = tuple(file for file in manifest.small if file.path != manifest.index)
    proved = tree is not None or (not need.code and _linked_in_order(cache, commit, small))
    completeness = Completeness.COMPLETE if proved else Completeness.USABLE
    return SnapshotState(completeness, replace(manifest, complete=True))


def usable_manifest(cache: RepoCache, commit: str, need: Need) -> Manifest | None:
    """The manifest of a snapshot that has all that a load opens, where nothing can be added to the cache. Blocks.

    What the listing has beyond that, a file that no load needs, can't be fetched there.
    """
    if not all(os.access(folder, os.W_OK) for folder in (cache.folder, cache.blobs) if folder.exists()):
        with suppress(LoaderError):
            manifest = cached_manifest(cache, Listing(commit, cache.files(commit)), need)
            return replace(manifest, complete=True) if manifest.sharp else None
    return None


def _linked_in_order(cache: RepoCache, commit: str, small: tuple[RepoFile, ...]) -> bool:
    # ctime, because a rename sets it where symlinks don't work. A copied cache loses this proof and nothing else.
    with suppress(OSError, KeyError):  # removed just now; the repository has only one of the two
        linked = {file.path: cache.pointer(commit, file.path).lstat().st_ctime_ns for file in small}
        config, tokenizer = linked.pop(CONFIG), linked.pop(TOKENIZER_CONFIG)
        return bool(linked) and config >= tokenizer >= max(linked.values())
    return False


def wait_for_clock_tick() -> None:
    """Wait until a new link gets a later time than all existing links. Blocks."""
    time.sleep(_CLOCK_TICK)


def mark_unproved(cache: RepoCache, commit: str) -> None:
    """Give tokenizer_config.json a later time than config.json: a choice by patterns must never look like a load."""
    with suppress(OSError):  # it does not exist, or is another user's, whose own order counts
        os.utime(cache.pointer(commit, TOKENIZER_CONFIG), follow_symlinks=False)


def cached_manifest(cache: RepoCache, listing: Listing, need: Need) -> Manifest:
    """The manifest of a load, as sharp as the cached files allow; raises what making one raises. Blocks."""
    assert listing.commit is not None
    manifest = draft(listing, need, model=cache.repo_id, folder=cache.snapshot(listing.commit))
    return manifest.sharpened(partial(read, cache, listing.commit))


def read(cache: RepoCache, commit: str, file: RepoFile) -> bytes | None:
    """The bytes of a small file, from the snapshot or from its verified blob; None where neither exists. Blocks."""
    blob = [cache.blob(file.etag)] if file.etag else []
    for path in (cache.pointer(commit, file.path), *blob):
        with suppress(OSError):
            return read_regular(path)
    return None


def read_fetched(cache: RepoCache, commit: str, file: RepoFile) -> bytes:
    """The bytes of a small file that was fetched or is linked; CacheAccessError where it can't be read. Blocks."""
    found = read(cache, commit, file)
    # Without symlinks another load may have moved the blob to its link between the two looks of `read`.
    return read_bytes(cache.pointer(commit, file.path)) if found is None else found
