"""The models under a root folder, with their commits and files.

All functions block: they read the disk and are called in threads. Only files in a listing made here are served, so a
request can't reach other files, however its path is spelled. Listing and opening both look beneath the root alone, and
a file is served only if it still is the listed one when it is open: links may change at any time.
"""

import errno
import hashlib
import io
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yaie_async.core.names import digest_kind
from yaie_async.localhub.beneath import LOOK, READ, open_beneath

_SEGMENT = re.compile(r"(?!\.)[\w.-]+", re.ASCII)
_LONGEST = 96  # characters, as on the Hub; file systems limit the length of names too

# Folders of git and of `hf download --local-dir`, which are not part of the repository.
_NOT_LISTED = frozenset({".git", ".cache"})


class ModelMissing(LookupError):
    """Raised when a model does not exist."""


class RevisionMissing(LookupError):
    """Raised when a model does not have a branch, tag or commit."""


class FileChanged(LookupError):
    """Raised when a file is not, or no longer, the one that was listed."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a commit.

    Attributes:
        path: its path in the repository, with `/`.
        root: the folder beneath which it is, with all links resolved.
        source: its path beneath the root, which may contain links.
        size: bytes.
        mtime_ns: its modification time; a new one, or a new size, means that the contents changed.
        etag: the name of its blob in an HF cache; None if the file must be hashed.
    """

    path: str
    root: Path
    source: str
    size: int
    mtime_ns: int
    etag: str | None = None

    def open(self) -> io.BufferedReader:
        """Open the file for reading.

        Raises:
            FileChanged: it was removed, replaced or changed since it was listed.
            OSError: it can't be read.
        """
        opened, found = _open(self.root, self.source, READ)
        if found != (self.size, self.mtime_ns):
            os.close(opened)
            raise FileChanged(self.path)
        return os.fdopen(opened, "rb")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model at one commit, with its files by path, sorted."""

    model: str
    commit: str
    files: Mapping[str, File]


class Models(Protocol):
    """A collection of models on disk."""

    def names(self) -> list[str]:
        """Return the names of all models."""

    def snapshot(self, model: str, revision: str) -> Snapshot:
        """Return a model at a revision.

        Raises:
            ModelMissing: the model does not exist.
            RevisionMissing: the model does not have this revision.
            OSError: the disk could not be read.
        """


def models_in(root: Path) -> Models:
    """Return the models of `root`: an HF cache if it has folders `models--*`, else a folder of models.

    Raises:
        NotADirectoryError: `root` is not a directory.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"There is no directory of models at {root}. Pass an existing folder.")
    if not any(root.glob("models--*")):
        return PlainModels(root)
    # Imported here: it imports huggingface_hub's constants, which read the environment at import.
    from yaie_async.localhub.cached_models import CachedModels

    return CachedModels(root)


class PlainModels:
    """Models in folders `root/name` or `root/org/name`, each with the single branch `main`.

    The commit is a hash of the files' paths, sizes and modification times, which avoids reading gigabytes. Changing a
    file creates a new commit and removes the previous one.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def names(self) -> list[str]:
        """Return the folders that contain files, and those inside a folder that contains none."""
        tops = [(name, _has_files(self._root / name)) for name in folders(self._root)]
        below = [f"{org}/{name}" for org, is_model in tops if not is_model for name in folders(self._root / org)]
        return [name for name, is_model in tops if is_model] + [n for n in below if _has_files(self._root / n)]

    def snapshot(self, model: str, revision: str) -> Snapshot:
        """Return a model at `main` or at its commit; see `Models.snapshot`."""
        parts = segments(model)
        top = self._root.joinpath(*parts)
        # A folder inside a model, such as gpt2/onnx, is not a model.
        if not _has_files(top) or (len(parts) == 2 and _has_files(top.parent)):
            raise ModelMissing(model)
        files = listing(top, self._root)
        if not files:
            raise ModelMissing(model)
        described = "\n".join(f"{file.path}\0{file.size}\0{file.mtime_ns}" for file in files.values())
        commit = hashlib.sha1(described.encode(), usedforsecurity=False).hexdigest()
        if revision not in ("main", commit):
            raise RevisionMissing(revision)
        return Snapshot(model, commit, files)


def segments(model: str) -> list[str]:
    """Return the one or two segments of a model's name.

    Raises:
        ModelMissing: the name is not valid.
    """
    parts = model.split("/")
    if len(parts) > 2 or len(model) > _LONGEST or not all(_SEGMENT.fullmatch(part) for part in parts):
        raise ModelMissing(model)
    return parts


def folders(directory: Path) -> list[str]:
    """Return the names of the folders in a directory, except hidden ones; empty if it can't be read."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _has_files(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(entry.is_file() for entry in entries)
    except OSError:
        return False


def listing(top: Path, root: Path) -> dict[str, File]:
    """Return the files under `top`, except those that a link places outside `root`."""
    files: list[File] = []
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = [name for name in subfolders if name not in _NOT_LISTED]
        for name in names:
            entry = Path(folder, name)
            path, source = entry.relative_to(top).as_posix(), entry.relative_to(root).as_posix()
            if not path.isprintable():
                continue  # Names that are not UTF-8 are not printable, and can't be in JSON.
            etag = _blob_name(entry)
            try:
                looked, found = _open(root, source, LOOK)
            except FileChanged:
                continue
            os.close(looked)
            files.append(File(path, root, source, *found, etag))
    return {file.path: file for file in sorted(files, key=lambda file: file.path)}


def _open(root: Path, source: str, flags: int) -> tuple[int, tuple[int, int]]:
    """Return a descriptor of the regular file at `source` beneath `root`, and the file's size and modification time.

    Raises:
        FileChanged: there is none.
    """
    try:
        opened = open_beneath(root, source, flags)
    except OSError as error:
        # It was removed, or replaced by a link that leads outside.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            raise FileChanged(source) from error
        raise
    status = os.fstat(opened)
    if not stat.S_ISREG(status.st_mode):  # FIFOs and devices have no contents
        os.close(opened)
        raise FileChanged(source)
    return opened, (status.st_size, status.st_mtime_ns)


def _blob_name(entry: Path) -> str | None:
    """Return the etag of a snapshot's entry: the name of the blob that it links to, or None if it is no such link."""
    try:
        target = entry.readlink()
    except OSError:
        return None  # no link, or gone
    return target.name if target.parent.name == "blobs" and digest_kind(target.name) else None
