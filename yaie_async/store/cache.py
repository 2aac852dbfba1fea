"""One repository's folder in the HF cache, laid out so that the official client can't tell who wrote it.

    $C/CACHEDIR.TAG
    $C/.locks/models--org--name/<etag>.lock
    $C/models--org--name/blobs/<etag>                 the bytes
                         refs/<revision>              a commit, 40 hex digits without a newline
                         snapshots/<commit>/<path> -> ../../blobs/<etag>
                         trees/<commit>.json          the official client's listing, read and never written

All methods block: they are called in threads. Facts are those of huggingface_hub 2.4.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.file_download import are_symlinks_supported, repo_folder_name

from yaie_async.core.manifest import RepoFile
from yaie_async.core.names import is_commit
from yaie_async.store.directory import files_below
from yaie_async.store.os_errors import cache_errors

_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by huggingface_hub.\n"
    "# For information about cache directory tags, see:\n"
    "#\thttps://bford.info/cachedir/\n"
)


@dataclass(frozen=True, slots=True)
class RepoCache:
    """The folder of one model. Nothing is created before something is written."""

    root: Path
    repo_id: str

    @property
    def folder(self) -> Path:
        return self.root / repo_folder_name(repo_id=self.repo_id, repo_type="model")

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    def blob(self, etag: str) -> Path:
        return self.blobs / etag

    def lock(self, etag: str) -> Path:
        return self.root / ".locks" / self.folder.name / f"{etag}.lock"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def pointer(self, commit: str, path: str) -> Path:
        return self.snapshot(commit).joinpath(*path.split("/"))

    def has(self, commit: str, path: str) -> bool:
        """Whether the snapshot has this file: a link whose blob is there, or a regular file."""
        return os.path.exists(self.pointer(commit, path))

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision stood for when it was last asked, or None."""
        if is_commit(revision):
            return revision
        try:
            commit = self.folder.joinpath("refs", *revision.split("/")).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if is_commit(commit) else None

    def tree(self, commit: str) -> Mapping[str, RepoFile] | None:
        """The whole listing of a commit, where the official client has left one; None where it has not."""
        try:
            listing = json.loads((self.folder / "trees" / f"{commit}.json").read_bytes())
            if listing["format_version"] != 1:
                return None
            return {
                path: RepoFile(
                    path,
                    entry.get("lfs_size", entry["size"]),
                    entry.get("lfs_sha256", entry["blob_id"]),
                )
                for path, entry in listing["files"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def files(self, commit: str) -> dict[str, RepoFile]:
        """What the snapshot has; see `files_below`."""
        return files_below(self.snapshot(commit))

    def prepare(self, commit: str) -> None:
        """Make the folders and the cache tag.

        `snapshots/<commit>` comes before any ref to it is written, or a scan would call the repository corrupt.

        Raises:
            CacheAccessError, DiskFullError: when they can't be made.
        """
        with cache_errors(self.folder):
            self.blobs.mkdir(parents=True, exist_ok=True)
            self.snapshot(commit).mkdir(parents=True, exist_ok=True)
        try:
            with open(self.root / "CACHEDIR.TAG", "x") as tag:
                tag.write(_TAG)
        except OSError:
            pass  # there already, or not to be written: nothing depends on it

    def write_ref(self, revision: str, commit: str) -> None:
        """Remember which commit a branch or tag stands for: atomic, and only where it changed.

        A full commit gets no ref. Failure is ignored, as the official client ignores it: the snapshot is
        found by commit all the same, and a read-only cache stays usable.
        """
        if revision == commit:
            return
        ref = self.folder.joinpath("refs", *revision.split("/"))
        temporary = ref.with_name(f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp")
        with suppress(OSError, UnicodeDecodeError):
            # As it stands: others take a newline for part of the commit.
            if ref.read_text() == commit:
                return
        with suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(commit)
                os.replace(temporary, ref)
            finally:
                temporary.unlink(missing_ok=True)

    def link(self, commit: str, path: str, etag: str, *, fresh: bool) -> None:
        """Enter a finished blob into the snapshot. `fresh` says that this load has just written the blob.

        Where symlinks don't work (or HF_HUB_DISABLE_SYMLINKS is set) a fresh blob is moved into the
        snapshot and an older one copied, as the official client does.

        Raises:
            CacheAccessError, DiskFullError: when it can't be entered; the snapshot is as it was.
        """
        blob, pointer = self.blob(etag), self.pointer(commit, path)
        with cache_errors(pointer):
            pointer.parent.mkdir(parents=True, exist_ok=True)
            if are_symlinks_supported(self.folder):
                self._symlink(blob, pointer)
            elif fresh:
                os.replace(blob, pointer)
            else:
                temporary = self._temporary(etag)
                try:
                    shutil.copyfile(blob, temporary)
                    os.replace(temporary, pointer)
                except FileNotFoundError:
                    if not pointer.exists():  # else whoever wrote the blob has just moved it there
                        raise
                finally:
                    temporary.unlink(missing_ok=True)

    def _symlink(self, blob: Path, pointer: Path) -> None:
        target = os.path.relpath(blob, pointer.parent)
        try:
            os.symlink(target, pointer)
        except FileExistsError:
            if os.path.exists(pointer) and os.path.samefile(pointer, blob):
                return
            # A dangling link or a stale copy: replaced in one step, so that no reader finds nothing.
            temporary = self._temporary(blob.name)
            try:
                os.symlink(target, temporary)
                os.replace(temporary, pointer)
            finally:
                temporary.unlink(missing_ok=True)

    def _temporary(self, etag: str) -> Path:
        # The official client's pattern for partials: `hf cache prune` cleans up after a killed process.
        return self.blobs / f"{etag}.{uuid.uuid4().hex[:8]}.incomplete"
