"""The JSON documents of the Hub's API: models, tree entries and the user."""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from yaie_async.localhub.blob_id import BlobId
from yaie_async.localhub.models import File, Snapshot

Json = dict[str, Any]


def whoami() -> Json:
    """Return the document of the hub's only user."""
    return {
        "type": "user",
        "id": "0" * 24,
        "name": "local",
        "fullname": "Local user",
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": {"displayName": "local", "role": "read"}},
    }


def model_info(snapshot: Snapshot, blob_ids: Mapping[str, BlobId] | None, *, gated: bool) -> Json:
    """Return the document of a model at a commit. `blob_ids` of its files are given for `?blobs=true`."""
    return {
        "_id": hashlib.sha1(snapshot.model.encode(), usedforsecurity=False).hexdigest()[:24],
        "id": snapshot.model,
        "modelId": snapshot.model,
        "sha": snapshot.commit,
        "private": False,
        "disabled": False,
        "gated": "manual" if gated else False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [
            {"rfilename": file.path} if blob_ids is None else _sibling(file, blob_ids[file.path])
            for file in snapshot.files.values()
        ],
    }


def _sibling(file: File, blob_id: BlobId) -> Json:
    sibling: Json = {"rfilename": file.path, "size": file.size, "blobId": blob_id.oid}
    if blob_id.sha256:
        sibling["lfs"] = {
            "sha256": blob_id.sha256,
            "size": file.size,
            "pointerSize": blob_id.pointer_size,
        }
    return sibling


def tree_file(file: File, blob_id: BlobId, commit: str, *, expand: bool) -> Json:
    """Return the tree entry of a file."""
    entry: Json = {"type": "file", "oid": blob_id.oid, "size": file.size, "path": file.path}
    if blob_id.sha256:
        entry["lfs"] = {"oid": blob_id.sha256, "size": file.size, "pointerSize": blob_id.pointer_size}
    return entry | _last_commit(commit, expand=expand)


def tree_folder(path: str, commit: str, *, expand: bool) -> Json:
    """Return the tree entry of a folder."""
    oid = hashlib.sha1(f"{commit}/{path}".encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path} | _last_commit(commit, expand=expand)


def _last_commit(commit: str, *, expand: bool) -> Json:
    if not expand:
        return {}
    return {"lastCommit": {"id": commit, "title": "Served locally", "date": "2000-01-01T00:00:00.000Z"}}


def folders_of(paths: Iterable[str]) -> set[str]:
    """Return all parent folders of the files, except the root."""
    return {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}


def entries_below(snapshot: Snapshot, folder: str, *, recursive: bool) -> list[str]:
    """Return the sorted paths of the files and folders in `folder`; "" is the root.

    Raises:
        KeyError: the commit has no such folder.
    """
    folders = folders_of(snapshot.files)
    if folder and folder not in folders:
        raise KeyError(folder)
    prefix = f"{folder}/" if folder else ""
    below = (path for path in folders.union(snapshot.files) if path.startswith(prefix))
    return sorted(path for path in below if recursive or "/" not in path[len(prefix) :])


def encode_cursor(path: str) -> str:
    """Return the cursor of the page that starts after `path`."""
    return base64.urlsafe_b64encode(path.encode()).decode()


def decode_cursor(cursor: str) -> str:
    """Return the path that `encode_cursor` encoded.

    Raises:
        ValueError: `cursor` is not valid.
    """
    return base64.urlsafe_b64decode(cursor.encode()).decode()
