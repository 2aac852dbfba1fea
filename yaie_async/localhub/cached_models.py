"""The models of an HF cache."""

import os
from pathlib import Path

from yaie_async.core.errors import UnsafeFileError
from yaie_async.core.manifest import Need
from yaie_async.core.names import check_path
from yaie_async.localhub.models import (
    ModelMissing,
    RevisionMissing,
    Snapshot,
    Unreadable,
    folders,
    is_beneath,
    listing,
    segments,
)
from yaie_async.store.cache import RepoCache
from yaie_async.store.completeness import Completeness, snapshot_state


class CachedModels:
    """The models of an HF cache, with its refs as branches and tags, and its complete snapshots as commits.

    An incomplete snapshot is not served: a client would take its listing for the listing of the whole commit.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._complete: set[tuple[str, str]] = set()

    def names(self) -> list[str]:
        """Return the models that have a complete snapshot."""
        tops = (name for name in folders(self._root) if name.startswith("models--"))
        names = (name.removeprefix("models--").replace("--", "/") for name in tops)
        return [name for name in names if any(self._is_served(name, commit) for commit in self._commits(name))]

    def _commits(self, model: str) -> list[str]:
        return folders(RepoCache(self._root, model).folder / "snapshots")

    def _is_served(self, model: str, commit: str) -> bool:
        try:
            self._snapshot(RepoCache(self._root, model), commit, commit)
        except (RevisionMissing, Unreadable):
            return False
        return True

    def snapshot(self, model: str, revision: str) -> Snapshot:
        """Return a model at a cached revision; see `Models.snapshot`."""
        if "--" in model:
            raise ModelMissing(model)
        segments(model)
        cache = RepoCache(self._root, model)
        if not os.path.isdir(cache.folder / "snapshots"):  # unlike Path.is_dir also where it may not be looked at
            raise ModelMissing(model)
        return self._snapshot(cache, _commit_of(cache, revision), revision)

    def _snapshot(self, cache: RepoCache, commit: str, revision: str) -> Snapshot:
        top = cache.snapshot(commit)
        if not os.path.isdir(top) or not is_beneath(self._root, top):
            raise RevisionMissing(revision)
        # First: it is bounded.
        snapshot = Snapshot(cache.repo_id, commit, listing(top, self._root))
        if not self._is_complete(cache, snapshot):
            raise RevisionMissing(f"{revision} (some of its files are not cached here)")
        return snapshot

    def _is_complete(self, cache: RepoCache, snapshot: Snapshot) -> bool:
        """Whether the snapshot has all files of the official client's listing, or all files that a load needs."""
        key = (snapshot.model, snapshot.commit)
        if key not in self._complete:
            tree = cache.tree(snapshot.commit)
            everything = tree is not None and tree.keys() <= snapshot.files.keys()
            if (
                not everything
                and snapshot_state(cache, snapshot.commit, Need(weights=True)).completeness is Completeness.MISSING
            ):
                return False
            self._complete.add(key)
        return True


def _commit_of(cache: RepoCache, revision: str) -> str:
    try:
        check_path(revision, model=cache.repo_id)  # a revision is the path of its ref
    except UnsafeFileError:
        raise RevisionMissing(revision) from None
    commit = cache.commit_of(revision)
    if commit is None:
        raise RevisionMissing(revision)
    return commit
