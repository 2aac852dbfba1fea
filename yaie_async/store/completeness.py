"""How much of a model a cached snapshot holds, told from the disk alone."""

from __future__ import annotations

import json
from enum import Enum
from functools import partial
from typing import Any

from yaie_async.core.errors import LoaderError
from yaie_async.core.plan import Listing, RepoFile, Wanted, WeightRules, choose
from yaie_async.store.cache import RepoCache


class Holding(Enum):
    """What is in the cache.

    MISSING: something that a load needs is not there.
    USABLE: nothing is known to be missing, and nothing proves that all is there: good enough offline.
    WHOLE: all files of the plan are there.
    """

    MISSING = 0
    USABLE = 1
    WHOLE = 2


def holding(cache: RepoCache, commit: str, *, weights: bool, code: bool, rules: WeightRules) -> Holding:
    """How much of a load's files the snapshot of `commit` has.

    The official client's listing proves it, and the index or the one file proves the weights. For the small
    files without a listing, the order in which we link does: tokenizer_config.json after all others, and
    config.json after that. Whoever fetches file by file has another order (transformers begins with these
    two). Code has no such order, so its wholeness is never proved.
    """
    if not cache.has(commit, "config.json"):
        return Holding.MISSING
    tree = cache.tree(commit)
    present = cache.files(commit)
    try:
        wanted = select(cache, Listing(commit, tree or present, {}), weights=weights, code=code, rules=rules)
    except LoaderError:
        return Holding.MISSING
    if any(file.path not in present for file in wanted.files):
        return Holding.MISSING
    # Not the index: it proves itself, and comes late where a tokenizer was fetched first.
    small = tuple(file for file in wanted.small if file.path != wanted.index)
    proved = tree is not None or (not code and _linked_in_order(cache, commit, small))
    return Holding.WHOLE if proved else Holding.USABLE


def _linked_in_order(cache: RepoCache, commit: str, small: tuple[RepoFile, ...]) -> bool:
    # ctime: a rename sets it where symlinks don't work, and copying a cache loses the proof, not more.
    try:
        linked = {file.path: cache.pointer(commit, file.path).lstat().st_ctime_ns for file in small}
    except OSError:
        return False  # removed this moment
    config, tokenizer = linked.pop("config.json"), linked.pop("tokenizer_config.json", None)
    return tokenizer is not None and bool(linked) and config >= tokenizer >= max(linked.values())


def select(cache: RepoCache, listing: Listing, *, weights: bool, code: bool, rules: WeightRules) -> Wanted:
    """The files of a load: by config.json and the index where those are there, else by their usual names.

    Raises:
        IncompatibleModelError, UnsafeFileError, ModelFileNotFoundError: as `yaie_async.core.plan` says.
    """
    return choose(
        listing.files,
        weights=weights,
        code=code,
        rules=rules,
        model=cache.repo_id,
        read_json=partial(read_json, cache, listing.commit),
    )


def read_json(cache: RepoCache, commit: str, file: RepoFile) -> Any:
    """A parsed JSON file, linked or still only a verified blob; None where it is not there or not JSON."""
    blob = [cache.blob(file.etag)] if file.etag else []
    for path in (cache.pointer(commit, file.path), *blob):
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
    return None
