"""The models under a root: which there are, which commits they have, which files a commit has.

Everything here reads the disk and belongs in a thread. A file is only ever served out of a listing that was made
here, so a path that is not in the listing, however it is spelled, is not found.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yaie_async.core.names import digest_kind

_SEGMENT = re.compile(r"(?!\.)[\w.-]+", re.ASCII)
_LONGEST = 96  # as on the Hub; much longer ones are no file names

# Bookkeeping of git and of `hf download --local-dir`, which no commit contains.
_NOT_LISTED = frozenset({".git", ".cache"})


class ModelMissing(LookupError):
    """Raised when there is no such model."""


class RevisionMissing(LookupError):
    """Raised when the model has no such branch, tag or commit."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a commit.

    Attributes:
        path: its path in the repository, with `/`.
        source: where its bytes are, all links resolved.
        size: bytes.
        mtime_ns: its time on disk; with the size, what tells that the contents changed.
        etag: the name of its blob, where an HF cache holds it; None if it takes a hash to know.
    """

    path: str
    source: Path
    size: int
    mtime_ns: int
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model at one commit: its files by path, in the order of their paths."""

    model: str
    commit: str
    files: Mapping[str, File]


class Models(Protocol):
    """Where models are found."""

    def names(self) -> list[str]:
        """Return the models that there are now."""

    def snapshot(self, model: str, revision: str) -> Snapshot:
        """Return a model at a revision.

        Raises:
            ModelMissing: there is no such model.
            RevisionMissing: it has no such revision.
            OSError: the disk could not be read.
        """


def models_in(root: Path) -> Models:
    """Return the models of an HF cache if `root` looks like one, else those of a directory of models.

    Raises:
        NotADirectoryError: `root` is no directory.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"no directory of models at {root}")
    if not any(root.glob("models--*")):
        return PlainModels(root)
    # Only now: it brings huggingface_hub, which reads the environment when it is imported.
    from yaie_async.localhub.cached_models import CachedModels

    return CachedModels(root)


class PlainModels:
    """Models that are directories, `root/name` or `root/org/name`, each with the one branch `main`.

    The commit is made from the paths, sizes and modification times of the files, so that naming it takes no reading
    of gigabytes. Whoever changes a file makes a new commit, and the one before is gone.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def names(self) -> list[str]:
        """Return every folder with files, and those in folders without."""
        tops = [(name, _has_files(self._root / name)) for name in folders(self._root)]
        below = [f"{org}/{name}" for org, is_model in tops if not is_model for name in folders(self._root / org)]
        return [name for name, is_model in tops if is_model] + [n for n in below if _has_files(self._root / n)]

    def snapshot(self, model: str, revision: str) -> Snapshot:
        """Return a model at `main` or at its commit."""
        parts = segments(model)
        top = self._root.joinpath(*parts)
        # A folder inside a model, say gpt2/onnx, is no model by itself.
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
    """Return the one or two parts of a model's name.

    Raises:
        ModelMissing: no model can have that name.
    """
    parts = model.split("/")
    if len(parts) > 2 or len(model) > _LONGEST or not all(_SEGMENT.fullmatch(part) for part in parts):
        raise ModelMissing(model)
    return parts


def folders(directory: Path) -> list[str]:
    """Return the names of the folders in a directory, but for hidden ones; none if it can't be read."""
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
    """Walk the files under `top`, leaving out those that a link takes outside `root`."""
    files: list[File] = []
    for folder, subfolders, names in os.walk(top):
        subfolders[:] = [name for name in subfolders if name not in _NOT_LISTED]
        for name in names:
            entry = Path(folder, name)
            source = entry.resolve()
            if not source.is_relative_to(root):
                continue
            try:
                status = source.stat()
            except FileNotFoundError:
                continue  # a dangling link, or deleted since
            path = entry.relative_to(top).as_posix()
            # Not printable is, among others, a name that is not UTF-8, which JSON can't say. FIFOs and devices have
            # no contents to serve.
            if stat.S_ISREG(status.st_mode) and path.isprintable():
                files.append(File(path, source, status.st_size, status.st_mtime_ns, _blob_name(entry)))
    return {file.path: file for file in sorted(files, key=lambda file: file.path)}


def _blob_name(entry: Path) -> str | None:
    """Return the etag that an HF cache recorded for a snapshot's entry, by the blob that it links to."""
    if not entry.is_symlink():
        return None
    target = entry.readlink()
    return target.name if target.parent.name == "blobs" and digest_kind(target.name) else None
