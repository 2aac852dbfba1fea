"""The models of an HF cache."""

from collections.abc import Mapping
from pathlib import Path

from yaie_async.core.errors import UnsafeFileError
from yaie_async.core.manifest import Need
from yaie_async.core.names import check_path
from yaie_async.localhub.models import (
    File,
    FolderState,
    ModelMissing,
    RevisionMissing,
    Snapshot,
    Unreadable,
    folder_state,
    folders,
    is_beneath,
    listing,
    one_file,
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
        self._complete: dict[Path, FolderState] = {}  # as it was when its files were found to be all there

    def names(self) -> list[str]:
        """Return the models that have a complete snapshot."""
        tops = (name for name in folders(self._root) if name.startswith("models--"))
        names = (name.removeprefix("models--").replace("--", "/") for name in tops)
        return [name for name in names if any(self._is_served(name, commit) for commit in self._commits(name))]

    def _commits(self, model: str) -> list[str]:
        return folders(RepoCache(self._root, model).folder / "snapshots")

    def _is_served(self, model: str, commit: str) -> bool:
        try:
            self.snapshot(model, commit)
        except (ModelMissing, RevisionMissing, Unreadable):
            return False
        return True

    def snapshot(self, model: str, revision: str) -> Snapshot:
        """Return a model at a cached revision; see `Models.snapshot`."""
        cache, top, state = self._find(model, revision)
        # First: it is bounded.
        files = listing(top, self._root)
        if not _is_complete(cache, top, files):
            raise RevisionMissing(f"{revision} (some of its files are not cached here)")
        self._complete[top] = state
        return Snapshot(model, top.name, files)

    def with_file(self, model: str, revision: str, path: str) -> Snapshot:
        """Return a cached revision with this file alone if it is known to be complete; see `Models.with_file`."""
        _, top, state = self._find(model, revision)
        if self._complete.get(top) == state:
            return Snapshot(model, top.name, one_file(path, top, self._root))
        return self.snapshot(model, revision)

    def _find(self, model: str, revision: str) -> tuple[RepoCache, Path, FolderState]:
        if "--" in model:
            raise ModelMissing(model)
        segments(model)
        cache = RepoCache(self._root, model)
        if folder_state(cache.folder / "snapshots", self._root) is None:
            raise ModelMissing(model)
        top = cache.snapshot(_commit_of(cache, revision))
        state = folder_state(top, self._root)
        if state is None or not is_beneath(self._root, top):
            raise RevisionMissing(revision)
        return cache, top, state


def _is_complete(cache: RepoCache, top: Path, files: Mapping[str, File]) -> bool:
    """Whether the snapshot has all files of the official client's listing, or all files that a load needs."""
    tree = cache.tree(top.name)
    if tree is not None and tree.keys() <= files.keys():
        return True
    return snapshot_state(cache, top.name, Need(weights=True)).completeness is not Completeness.MISSING


def _commit_of(cache: RepoCache, revision: str) -> str:
    try:
        check_path(revision, model=cache.repo_id)  # a revision is the path of its ref
    except UnsafeFileError:
        raise RevisionMissing(revision) from None
    commit = cache.commit_of(revision)
    if commit is None:
        raise RevisionMissing(revision)
    return commit
