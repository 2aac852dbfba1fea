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
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yaie_async.core.names import digest_kind
from yaie_async.localhub.beneath import LOOK, READ, open_beneath

_SEGMENT = re.compile(r"(?!\.)[\w.-]+", re.ASCII)
_LONGEST = 96  # characters, as on the Hub; file systems limit the length of names too

# As many as clients take. What has more, or is deeper, is hardly a model: another file system that is mounted there.
_MOST_ENTRIES = 500_000
_DEEPEST = 100
_REFUSED = {errno.EACCES, errno.EPERM}
# Removed, replaced by a link that leads outside, or never there.
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG}

# Folders of git and of `hf download --local-dir`, which are not part of the repository.
_NOT_LISTED = frozenset({".git", ".cache"})

FolderState = tuple[int, int, int]


class ModelMissing(LookupError):
    """Raised when a model does not exist."""


class RevisionMissing(LookupError):
    """Raised when a model does not have a branch, tag or commit."""


class Unreadable(Exception):
    """Raised when this server may not read a file or folder, or when a folder has too much in it."""


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

    def is_there(self) -> bool:
        """Return whether the file still is the listed one.

        Raises:
            Unreadable: the server may not look at it.
            OSError: it can't be looked at.
        """
        try:
            looked, found = _open(self.root, self.source, LOOK)
        except FileChanged:
            return False
        os.close(looked)
        return found == (self.size, self.mtime_ns)

    def open(self) -> io.BufferedReader:
        """Open the file for reading.

        Raises:
            FileChanged: it was removed, replaced or changed since it was listed.
            Unreadable: the server may not read it.
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
            Unreadable: the server may not list it.
            OSError: the disk could not be read.
        """

    def with_file(self, model: str, revision: str, path: str) -> Snapshot:
        """Return a model at a revision, as `snapshot`, for a request for one file: others may be left out, or changed.

        At a commit that was listed before, the other files are not looked at.
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
    file creates a new commit and removes the previous one, whose other files are served until the next listing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._lock = threading.Lock()
        self._listed: dict[str, Snapshot] = {}  # of each model the last one, those listed last at the end

    def names(self) -> list[str]:
        """Return the folders that contain files, and those inside a folder that contains none."""
        tops = [(name, self._is_model(name)) for name in folders(self._root)]
        below = [f"{org}/{name}" for org, is_model in tops if not is_model for name in folders(self._root / org)]
        return [name for name, is_model in tops if is_model] + [n for n in below if self._is_model(n)]

    def snapshot(self, model: str, revision: str) -> Snapshot:
        """Return a model at `main` or at its commit; see `Models.snapshot`."""
        parts = segments(model)
        # A folder inside a model, such as gpt2/onnx, is not a model.
        if not self._has_files(model) or (len(parts) == 2 and self._is_model(parts[0])):
            raise ModelMissing(model)
        files = listing(self._root / model, self._root)
        if not files:
            raise ModelMissing(model)
        described = "\n".join(f"{file.path}\0{file.size}\0{file.mtime_ns}" for file in files.values())
        commit = hashlib.sha1(described.encode(), usedforsecurity=False).hexdigest()
        snapshot = Snapshot(model, commit, files)
        self._remember(snapshot)
        if revision not in ("main", commit):
            raise RevisionMissing(revision)
        return snapshot

    def with_file(self, model: str, revision: str, path: str) -> Snapshot:
        """Return a model at a commit that was listed before, or as `snapshot`; see `Models.with_file`."""
        listed = self._listed.get(model)
        if listed is not None and listed.commit == revision:
            file = listed.files.get(path)
            if file is None or file.is_there():
                return listed
        return self.snapshot(model, revision)

    def _remember(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._listed.pop(snapshot.model, None)
            self._listed[snapshot.model] = snapshot
            while sum(len(each.files) for each in self._listed.values()) > _MOST_ENTRIES:
                del self._listed[next(iter(self._listed))]

    def _is_model(self, name: str) -> bool:
        with suppress(Unreadable):
            return self._has_files(name)
        return False

    def _has_files(self, name: str) -> bool:
        if not is_beneath(self._root, self._root / name):
            return False
        try:
            with os.scandir(self._root / name) as entries:
                # The names of files in a folder may be readable where the files are not.
                return any(entry.is_file(follow_symlinks=False) or os.path.isfile(entry) for entry in entries)
        except OSError as error:
            _check_refused(error, name)
            return False


def is_beneath(root: Path, folder: Path) -> bool:
    """Whether a folder is in `root`, and no link to elsewhere: of such a one no file would be listed."""
    return Path(os.path.realpath(folder)).is_relative_to(root)


def folder_state(folder: Path, root: Path) -> FolderState | None:
    """Return what differs once a folder was made anew or an entry of it changed; None where there is no folder.

    Raises:
        Unreadable: the server may not look at it.
    """
    try:
        status = os.stat(folder)
    except OSError as error:
        _check_refused(error, folder.relative_to(root))
        return None
    # With the time of the change: a new folder may get the inode of the old one.
    return (status.st_dev, status.st_ino, status.st_ctime_ns) if stat.S_ISDIR(status.st_mode) else None


def _check_refused(error: OSError, what: str | Path, *also: int) -> None:
    """Raise Unreadable, which names `what`, if the system refused it to the server."""
    if error.errno in _REFUSED.union(also):
        raise Unreadable(f"{what}: {error.strerror}") from error


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
            return sorted(entry.name for entry in entries if os.path.isdir(entry) and not entry.name.startswith("."))
    except OSError:
        return []


def listing(top: Path, root: Path) -> dict[str, File]:
    """Return the files under `top`, except those that a link places outside `root`.

    Raises:
        Unreadable: the server may not list it, or there are too many.
    """
    # All names first: whether there are too many is known at a hundredth of the cost of looking at the files.
    files = (_file(path, top, root) for path in sorted(_names(top, root)))
    return {file.path: file for file in files if file is not None}


def _names(top: Path, root: Path) -> Iterator[str]:
    """Yield the paths of all that is no folder under `top`."""
    seen, left = 0, [("", 0)]
    while left:
        folder, depth = left.pop()
        try:
            with os.scandir(top / folder) as entries:
                for entry in entries:
                    seen += 1
                    if seen > _MOST_ENTRIES or depth > _DEEPEST:
                        most = f"{_MOST_ENTRIES:,} files, or folders more than {_DEEPEST} deep"
                        raise Unreadable(f"{top.relative_to(root)}: it has more than {most}")
                    if not entry.is_dir(follow_symlinks=False):
                        yield folder + entry.name
                    elif entry.name not in _NOT_LISTED:
                        left.append((f"{folder}{entry.name}/", depth + 1))
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed just now
        except OSError as error:
            _check_refused(error, (top / folder).relative_to(root), errno.ENAMETOOLONG)
            raise


def one_file(path: str, top: Path, root: Path) -> dict[str, File]:
    """Return what `listing` has at `path`: looks at no other file, and raises the same."""
    *folders, name = path.split("/")
    if len(folders) > _DEEPEST or {"", ".", ".."} & {*folders, name} or _NOT_LISTED & {*folders}:
        return {}
    if any(os.path.islink(top.joinpath(*folders[: depth + 1])) for depth in range(len(folders))):
        return {}
    file = _file(path, top, root)
    return {} if file is None else {path: file}


def _file(path: str, top: Path, root: Path) -> File | None:
    """Return the file at `path` under `top`, or None where there is none that is beneath `root`."""
    if not path.isprintable():
        return None  # Names that are not UTF-8 are not printable, and can't be in JSON.
    entry = top / path
    source = entry.relative_to(root).as_posix()
    etag = _blob_name(entry)
    try:
        looked, found = _open(root, source, LOOK)
    except FileChanged:
        return None
    os.close(looked)
    return File(path, root, source, *found, etag)


def _open(root: Path, source: str, flags: int) -> tuple[int, tuple[int, int]]:
    """Return a descriptor of the regular file at `source` beneath `root`, and the file's size and modification time.

    Raises:
        FileChanged: there is none.
        Unreadable: the server may not read it.
    """
    try:
        opened = open_beneath(root, source, flags)
    except OSError as error:
        # It was removed, or replaced by a link that leads outside.
        if error.errno in _NOT_THERE:
            raise FileChanged(source) from error
        _check_refused(error, source)
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
