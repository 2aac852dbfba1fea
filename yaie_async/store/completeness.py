"""How much of a model a cached snapshot holds, decided by the disk alone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum

from yaie_async.core.errors import LoaderError
from yaie_async.core.manifest import CONFIG, TOKENIZER_CONFIG, Listing, Manifest, Need, RepoFile, draft
from yaie_async.store.cache import RepoCache

_TICK = 0.02  # seconds: file systems step the times of files by 10 ms at the most


class Holding(Enum):
    """What is in the cache.

    MISSING: something that a load needs is missing.
    USABLE: nothing is known to be missing, and nothing proves that all is there: good enough offline.
    WHOLE: all files of the manifest are there.
    """

    MISSING = 0
    USABLE = 1
    WHOLE = 2


@dataclass(frozen=True, slots=True)
class Held:
    """What the cache has of a load.

    Attributes:
        holding: how much.
        manifest: the files of the load, where the cache is enough to decide on them.
        error: why the model can't be loaded, whatever else the repository has; None where that is not known.
    """

    holding: Holding
    manifest: Manifest | None = None
    error: LoaderError | None = None


def held(cache: RepoCache, commit: str, need: Need) -> Held:
    """How much of a load's files the snapshot of `commit` has. Blocks.

    The official client's listing proves it, and the index or the one file proves the weights. Without a listing the
    order in which this package links proves the small files: tokenizer_config.json after all others, and config.json
    after that. A client that fetches file by file has another order (transformers begins with these two). Code has
    no such order, so its wholeness is never proved.
    """
    tree, present = cache.tree(commit), cache.files(commit)
    if CONFIG not in present and (tree is None or CONFIG in tree):
        return Held(Holding.MISSING)
    try:
        manifest = cached_draft(cache, Listing(commit, tree or present), need)
    except LoaderError as error:
        # What the content of a file says is final. What is not there may be on the Hub, unless its listing is known.
        final = tree is not None or (getattr(error, "file", None) or "").endswith(".json")
        return Held(Holding.MISSING, error=error if final else None)
    if not manifest.sharp or any(file.path not in present for file in manifest.files):
        return Held(Holding.MISSING, manifest)
    # Not the index: it proves itself, and is linked late where a tokenizer was fetched first.
    small = tuple(file for file in manifest.small if file.path != manifest.index)
    proved = tree is not None or (not need.code and _linked_in_order(cache, commit, small))
    return Held(Holding.WHOLE if proved else Holding.USABLE, replace(manifest, complete=True))


def _linked_in_order(cache: RepoCache, commit: str, small: tuple[RepoFile, ...]) -> bool:
    # ctime: a rename sets it where symlinks don't work, and copying a cache loses the proof, not more.
    try:
        linked = {file.path: cache.pointer(commit, file.path).lstat().st_ctime_ns for file in small}
    except OSError:
        return False  # removed this moment
    config, tokenizer = linked.pop(CONFIG), linked.pop(TOKENIZER_CONFIG, None)
    return tokenizer is not None and bool(linked) and config >= tokenizer >= max(linked.values())


def wait_for_later_time() -> None:
    """Wait until a link that is made now has a later time than all links before it. Blocks."""
    time.sleep(_TICK)


def disprove(cache: RepoCache, commit: str) -> None:
    """Give tokenizer_config.json a later time than config.json: a choice by patterns must never look like a load."""
    with suppress(OSError):  # it does not exist, or belongs to another user, whose own order counts
        os.utime(cache.pointer(commit, TOKENIZER_CONFIG), follow_symlinks=False)


def cached_draft(cache: RepoCache, listing: Listing, need: Need) -> Manifest:
    """The manifest of a load, as sharp as what is in the cache allows. Blocks.

    Raises:
        IncompatibleModelError, UnsafeFileError, ModelFileNotFoundError: as `yaie_async.core.manifest` says.
    """
    assert listing.commit is not None
    folder = cache.snapshot(listing.commit)
    return draft(listing, need, model=cache.repo_id, folder=folder).sharpened(lambda file: read(cache, listing, file))


def read(cache: RepoCache, listing: Listing, file: RepoFile) -> bytes | None:
    """The bytes of a small file, linked or still only a verified blob; None where it is neither. Blocks."""
    assert listing.commit is not None
    blob = [cache.blob(file.etag)] if file.etag else []
    for path in (cache.pointer(listing.commit, file.path), *blob):
        with suppress(OSError):
            return path.read_bytes()
    return None


def known_files(cache: RepoCache, commit: str) -> Mapping[str, RepoFile]:
    """What the disk says of a commit's files: all, where the official client left its listing, else what is there."""
    return cache.tree(commit) or cache.files(commit)
