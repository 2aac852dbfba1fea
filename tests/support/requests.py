"""Build requests for the files of a directory or of a cached snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yaie_async.core.manifest import Listing, Manifest, Need, WeightRules
from yaie_async.model.request import BuildRequest
from yaie_async.store.cache import RepoCache
from yaie_async.store.completeness import snapshot_state
from yaie_async.store.directory import directory_manifest


def request_of(
    source: str | Path,
    commit: str | None = None,
    cache_dir: str | None = None,
    *,
    weights: bool = True,
    allow_pickle: bool = True,
    **options: Any,
) -> BuildRequest:
    """Return the request for a directory, or for a snapshot of `cache_dir`.

    Raises:
        LoaderError: as a loader with the same arguments.
    """
    rules = WeightRules(variant=options.get("model_kwargs", {}).get("variant"), pickle=allow_pickle)
    need = Need(weights, bool(options.get("trust_remote_code")), rules)
    manifest: Manifest | None
    if commit is None or cache_dir is None:
        manifest = directory_manifest(Path(source), need)
    else:
        found = snapshot_state(RepoCache(Path(cache_dir), str(source)), commit, need)
        manifest = found.manifest
        if manifest is None:
            raise found.error or FileNotFoundError(f"{source} in {cache_dir}")
    return BuildRequest(manifest, cache_dir, **options)


def tokenizer_request_of(directory: Path) -> BuildRequest:
    """Return the request for the tokenizer files of a directory without config.json."""
    return BuildRequest(Manifest(str(directory), directory, Listing(None, {}), Need(weights=False), sharp=True))
