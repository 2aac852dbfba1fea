"""One repository's folder in the HF cache, in exactly the layout that the official client writes.

    $C/CACHEDIR.TAG
    $C/.locks/models--org--name/<etag>.lock
    $C/models--org--name/blobs/<etag>                 the bytes
                         refs/<revision>              a commit, 40 hex digits without a newline
                         snapshots/<commit>/<path> -> ../../blobs/<etag>
                         .no_exist/<commit>/<path>    empty: the repository has no such file (config.json only)
                         trees/<commit>.json          the official client's listing, read and never written

The layout is that of huggingface_hub 2.4. All methods block: they are called in threads. `prepare` and `link` raise
CacheAccessError or DiskFullError; the others never raise.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from yaie_async.core.manifest import RepoFile
from yaie_async.core.names import is_commit
from yaie_async.store.compat import are_symlinks_supported
from yaie_async.store.directory import files_below
from yaie_async.store.diskio import read_regular
from yaie_async.store.os_errors import cache_errors

_LARGEST_REF = 4096  # bytes

_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by huggingface_hub.\n"
    "# For information about cache directory tags, see:\n"
    "#\thttps://bford.info/cachedir/\n"
)


def lock_path(root: Path, blob: Path) -> Path:
    """The lock file of a blob of any repository of the cache at `root`."""
    return root / ".locks" / blob.parents[1].name / f"{blob.name}.lock"


@dataclass(frozen=True, slots=True)
class RepoCache:
    """The folder of one model. Reading it creates nothing."""

    root: Path
    repo_id: str

    @property
    def folder(self) -> Path:
        return self.root / "--".join(("models", *self.repo_id.split("/")))

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    def blob(self, etag: str) -> Path:
        return self.blobs / etag

    def lock(self, etag: str) -> Path:
        return lock_path(self.root, self.blob(etag))

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def pointer(self, commit: str, path: str) -> Path:
        return self.snapshot(commit).joinpath(*path.split("/"))

    def has(self, commit: str, path: str) -> bool:
        """Whether the snapshot has this file: a link to an existing blob, or a regular file."""
        pointer = self.pointer(commit, path)
        return os.path.isfile(pointer) or os.path.isdir(pointer)  # no FIFO; reading a folder is an error with its name

    def files(self, commit: str) -> dict[str, RepoFile]:
        """The files of the snapshot; see `files_below`."""
        return files_below(self.snapshot(commit))

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision last resolved to, or None."""
        if is_commit(revision):
            return revision
        with suppress(OSError, UnicodeDecodeError):
            commit = read_regular(self._ref(revision), _LARGEST_REF).decode().strip()
            return commit if is_commit(commit) else None
        return None

    def tree(self, commit: str) -> Mapping[str, RepoFile] | None:
        """The full listing of a commit if the official client has written one, else None."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
            listing = json.loads(read_regular(self.folder / "trees" / f"{commit}.json"))
            if listing["format_version"] == 1:
                return {
                    path: RepoFile(path, one.get("lfs_size", one["size"]), one.get("lfs_sha256", one["blob_id"]))
                    for path, one in listing["files"].items()
                }
        return None

    def lacks(self, commit: str, path: str) -> bool:
        """Whether a note says that the repository has no such file."""
        return (self.folder / ".no_exist" / commit / path).exists()

    def note_absent(self, commit: str, path: str) -> None:
        """Note that the repository has no such file, once all others of a load are linked. Errors are ignored."""
        note = self.folder / ".no_exist" / commit / path
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()

    def prepare(self, commit: str) -> None:
        """Make the folders and the cache tag.

        The folder of the snapshot has to exist before a ref to it, or `hf cache scan` calls the repository corrupt.
        """
        with cache_errors(self.folder):
            self.blobs.mkdir(parents=True, exist_ok=True)
            self.snapshot(commit).mkdir(parents=True, exist_ok=True)
            self._refuse_links(self.snapshot(commit))
        # The tag may exist, or the root may be read-only. Nothing depends on the tag.
        with suppress(OSError), open(self.root / "CACHEDIR.TAG", "x") as tag:
            tag.write(_TAG)

    def write_ref(self, revision: str, commit: str) -> None:
        """Store the commit of a branch or tag: atomically, and only if it changed.

        A full commit gets no ref. Errors are ignored, as in the official client: the snapshot can be found by its
        commit without the ref, and a read-only cache stays usable.
        """
        if revision == commit:
            return
        ref = self._ref(revision)
        with suppress(OSError, UnicodeDecodeError):
            # Not stripped: other programs take a trailing newline for a part of the commit.
            if read_regular(ref, _LARGEST_REF).decode() == commit:
                return
        with suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            self._refuse_links(ref.parent)
            temporary = ref.with_name(f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp")
            _replace(ref, temporary, lambda: temporary.write_text(commit))

    def link(self, commit: str, path: str, etag: str, *, fresh: bool) -> None:
        """Link a finished blob into the snapshot. `fresh`: whether this load has just written the blob.

        Where symlinks don't work (or HF_HUB_DISABLE_SYMLINKS is set) a fresh blob is moved into the snapshot and an
        older one copied, as the official client does. After an error the snapshot is unchanged.
        """
        blob, pointer = self.blob(etag), self.pointer(commit, path)
        # Named like the official client's partials, so that `hf cache prune` removes it after a kill.
        temporary = blob.with_name(f"{etag}.{uuid.uuid4().hex[:8]}.incomplete")
        with cache_errors(pointer):
            pointer.parent.mkdir(parents=True, exist_ok=True)
            self._refuse_links(pointer.parent)
            if are_symlinks_supported(self.folder):
                _symlink(blob, pointer, temporary)
            elif fresh:
                os.replace(blob, pointer)
            else:
                try:
                    _replace(pointer, temporary, lambda: shutil.copyfile(blob, temporary))
                except FileNotFoundError:
                    if not pointer.exists():  # else another load has just moved the blob to this place
                        raise

    def _refuse_links(self, folder: Path) -> None:
        """Raise where a folder of the repository is a link: what is written there would be written elsewhere."""
        for each in (folder, *folder.parents):
            if each == self.folder:
                return
            if each.is_symlink():
                raise OSError(errno.ELOOP, "It is a link to another folder; remove it", str(each))

    def _ref(self, revision: str) -> Path:
        return self.folder.joinpath("refs", *revision.split("/"))


def _symlink(blob: Path, pointer: Path, temporary: Path) -> None:
    target = os.path.relpath(blob, pointer.parent)
    try:
        os.symlink(target, pointer)
    except FileExistsError:
        # A dangling link or a stale copy is replaced in one step, so that readers always find a file.
        if not (os.path.exists(pointer) and os.path.samefile(pointer, blob)):
            _replace(pointer, temporary, lambda: os.symlink(target, temporary))


def _replace(path: Path, temporary: Path, make: Callable[[], object]) -> None:
    """Put the file that `make` makes at `temporary` in the place of `path`, in one step."""
    try:
        make()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
