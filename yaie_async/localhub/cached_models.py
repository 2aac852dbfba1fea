"""The models of an HF cache."""

from pathlib import Path

from yaie_async.core.errors import UnsafeFileError
from yaie_async.core.manifest import Need
from yaie_async.core.names import check_path
from yaie_async.localhub.models import ModelMissing, RevisionMissing, Snapshot, folders, listing, segments
from yaie_async.store.cache import RepoCache
from yaie_async.store.completeness import Completeness, snapshot_state


class CachedModels:
    """The models of an HF cache, with its refs as branches and tags, and its complete snapshots as commits.

    An incomplete snapshot is not served: a client would take its listing for the listing of the whole commit.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._complete: set[Path] = set()

    def names(self) -> list[str]:
        """Return the models that have a complete snapshot."""
        tops = (name for name in folders(self._root) if name.startswith("models--"))
        names = (name.removeprefix("models--").replace("--", "/") for name in tops)
        return [name for name in names if any(self._is_complete(name, at) for at in self._snapshots(name))]

    def _snapshots(self, model: str) -> list[Path]:
        top = RepoCache(self._root, model).folder / "snapshots"
        return [top / commit for commit in folders(top)]

    def snapshot(self, model: str, revision: str) -> Snapshot:
        """Return a model at a cached revision; see `Models.snapshot`."""
        if "--" in model:
            raise ModelMissing(model)
        segments(model)
        cache = RepoCache(self._root, model)
        if not (cache.folder / "snapshots").is_dir():
            raise ModelMissing(model)
        commit = _commit_of(cache, revision)
        snapshot = cache.snapshot(commit)
        if not snapshot.is_dir():
            raise RevisionMissing(revision)
        if not self._is_complete(model, snapshot):
            raise RevisionMissing(f"{revision} (some of its files are not cached here)")
        return Snapshot(model, commit, listing(snapshot, self._root))

    def _is_complete(self, model: str, snapshot: Path) -> bool:
        """Whether the snapshot has all files of the official client's listing, or all files that a load needs."""
        if snapshot not in self._complete:
            cache = RepoCache(self._root, model)
            tree = cache.tree(snapshot.name)
            everything = tree is not None and tree.keys() <= cache.files(snapshot.name).keys()
            if (
                not everything
                and snapshot_state(cache, snapshot.name, Need(weights=True)).completeness is Completeness.MISSING
            ):
                return False
            self._complete.add(snapshot)
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
