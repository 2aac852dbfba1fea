"""The ids by which the Hub names contents: git blob ids for small files, sha256 for LFS files."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from yaie_async.core.names import digest_kind
from yaie_async.core.tasks import SharedCall, task_group
from yaie_async.localhub.limiter import Limiter

if TYPE_CHECKING:
    from yaie_async.localhub.models import File

_Key = tuple[Path, str, int, int, bool]

_LARGE = 10 * 1024 * 1024  # bytes, above which the Hub stores any file in LFS
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

# Large files take seconds to minutes, so they have threads of their own: a request uses half of them.
_SMALL_FILES = Limiter("hashes of small files", _THREADS)
_LARGE_FILES = Limiter("hashes of large files", 2 * _THREADS)


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
    return size > _LARGE or path.endswith(_LFS_SUFFIXES)


class BlobIds:
    """The ids of files, computed in threads on first use and cached until the file changes on disk.

    A small file never waits for a large one, and a large one only where several others are hashed already.
    """

    def __init__(self) -> None:
        self._known: dict[_Key, BlobId] = {}
        self._flights: defaultdict[_Key, SharedCall[BlobId]] = defaultdict(SharedCall)

    async def of(self, *files: File) -> dict[str, BlobId]:
        """Return the ids of files, by their paths.

        **Cancellation:** control returns when threads have computed the ids that they are at, which are cached.

        **Raises:** FileChanged, if a file is not the listed one. OSError, if one can't be read.
        """
        found: dict[str, BlobId] = {}
        large = [file for file in files if file.etag is None and file.size > _LARGE and _key(file) not in self._known]
        apart = {file.path for file in large}
        small = [file for file in files if file.path not in apart]
        # Threads are taken for a slice or for one large file at a time, so that requests take turns.
        left, left_large = iter(small), iter(large)

        async def compute() -> None:
            while await anyio.to_thread.run_sync(self._some, left, found, limiter=_SMALL_FILES.get()):
                pass

        async def compute_large() -> None:
            for file in left_large:
                found[file.path] = await self._alone(file)

        async with task_group() as tasks:
            for _ in small[:_THREADS]:
                tasks.start_soon(compute)
            for _ in large[:_THREADS]:
                tasks.start_soon(compute_large)
        return found

    def _some(self, left: Iterator[File], found: dict[str, BlobId]) -> bool:
        """Add the ids of some files, until a slice of time has passed. Return whether files may be left."""
        end = time.monotonic() + _SLICE
        for file in left:
            found[file.path] = self._of(file)
            if time.monotonic() > end:
                return True
        return False

    async def _alone(self, file: File) -> BlobId:
        """Return the id of a large file; those who wait for the same one keep no thread."""
        flight = self._flights[_key(file)]
        try:
            return await flight(partial(anyio.to_thread.run_sync, self._of, file, limiter=_LARGE_FILES.get()))
        finally:
            self._flights.pop(_key(file), None)

    def _of(self, file: File) -> BlobId:
        known = self._known.get(_key(file))
        if known is None:
            known = self._known[_key(file)] = _blob_id(file)
        return known


def _key(file: File) -> _Key:
    return file.root, file.source, file.size, file.mtime_ns, is_lfs(file.path, file.size)


def _blob_id(file: File) -> BlobId:
    if file.etag is not None:
        return lfs_blob_id(file.etag, file.size) if digest_kind(file.etag) == "sha256" else BlobId(file.etag)
    if is_lfs(file.path, file.size):
        return lfs_blob_id(_hash_file(file, hashlib.sha256), file.size)
    return BlobId(_hash_file(file, lambda: _git_hash(file.size)))


def _hash_file(file: File, algorithm: Callable[[], hashlib._Hash]) -> str:
    with file.open() as opened:
        return hashlib.file_digest(opened, algorithm).hexdigest()


def _git_hash(size: int, data: bytes = b"") -> hashlib._Hash:
    return hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False)
