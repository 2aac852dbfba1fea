"""The ids by which the Hub names contents: git blob ids for small files, sha256 for LFS files."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from yaie_async.core.names import digest_kind
from yaie_async.core.tasks import task_group
from yaie_async.localhub.limiter import Limiter

if TYPE_CHECKING:
    from yaie_async.localhub.models import File

_LFS_ABOVE = 10 * 1024 * 1024
_LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".h5",
    ".msgpack",
    ".onnx",
    ".tflite",
    ".pt",
    ".pth",
    ".gguf",
    ".model",
)

# Hashing is bound by CPU and disk, and more threads would slow down the bodies being served.
_THREADS = 2
# Seconds for which a request keeps a thread, as long as no file takes longer: a thread a file costs 0.4 ms more.
_SLICE = 0.05

_HASHING = Limiter("hashing", _THREADS)


@dataclass(frozen=True, slots=True)
class BlobId:
    """The ids of a file's contents.

    Attributes:
        oid: the id of the git blob. The blob of an LFS file is its pointer, so this is not the file's etag.
        sha256: the sha256 of an LFS file, else None.
        pointer_size: the size of the LFS pointer in bytes, else 0.
    """

    oid: str
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        """The id in the `ETag` header and in the blobs folder of a cache."""
        return self.sha256 or self.oid


def lfs_blob_id(sha256: str, size: int) -> BlobId:
    """Return the ids of an LFS file; `oid` is that of the pointer that git stores."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return BlobId(_git_hash(len(pointer), pointer).hexdigest(), sha256, len(pointer))


def is_lfs(path: str, size: int) -> bool:
    """Return whether the Hub would store this file in LFS."""
    return size > _LFS_ABOVE or path.endswith(_LFS_SUFFIXES)


class BlobIds:
    """The ids of files, computed in threads on first use and cached until the file changes on disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], Future[BlobId]] = {}

    async def of(self, *files: File) -> dict[str, BlobId]:
        """Return the ids of files, by their paths.

        **Cancellation:** control returns when threads have computed the ids that they are at, which are cached.

        **Raises:** FileChanged, if a file is not the listed one. OSError, if one can't be read.
        """
        found: dict[str, BlobId] = {}
        # Threads are taken for a slice at a time, so that requests take turns.
        left = iter(files)

        async def compute() -> None:
            while await anyio.to_thread.run_sync(self._some, left, found, limiter=_HASHING.get()):
                pass

        async with task_group() as tasks:
            for _ in range(min(len(files), _THREADS)):
                tasks.start_soon(compute)
        return found

    def _some(self, left: Iterator[File], found: dict[str, BlobId]) -> bool:
        """Add the ids of some files, until a slice of time has passed. Return whether files may be left."""
        end = time.monotonic() + _SLICE
        for file in left:
            found[file.path] = self._of(file)
            if time.monotonic() > end:
                return True
        return False

    def _of(self, file: File) -> BlobId:
        lfs = is_lfs(file.path, file.size)
        key = (file.root, file.source, file.size, file.mtime_ns, lfs)
        with self._lock:
            known = self._known.get(key)
            if known is None:
                mine = self._known[key] = Future()
        if known is not None:
            return known.result()
        try:
            mine.set_result(_blob_id(file, lfs=lfs))
        except BaseException as error:
            # Do not cache the error: the next request may succeed.
            with self._lock:
                del self._known[key]
            mine.set_exception(error)
            raise
        return mine.result()


def _blob_id(file: File, *, lfs: bool) -> BlobId:
    if file.etag is not None:
        return lfs_blob_id(file.etag, file.size) if digest_kind(file.etag) == "sha256" else BlobId(file.etag)
    if lfs:
        return lfs_blob_id(_hash_file(file, hashlib.sha256), file.size)
    return BlobId(_hash_file(file, lambda: _git_hash(file.size)))


def _hash_file(file: File, algorithm: Callable[[], hashlib._Hash]) -> str:
    with file.open() as opened:
        return hashlib.file_digest(opened, algorithm).hexdigest()


def _git_hash(size: int, data: bytes = b"") -> hashlib._Hash:
    return hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False)
