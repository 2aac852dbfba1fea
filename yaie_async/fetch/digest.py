"""Digests of files on disk: sha256 of LFS files, git's blob sha1 (or a mirror's plain sha1) of small files."""

import errno
import hashlib
import os
from collections.abc import Callable
from typing import Any

from yaie_async.core.names import digest_kind
from yaie_async.store.diskio import open_regular

# Bytes. Reads into one reused buffer are as fast as a populated mmap, without SIGBUS and without stalls on unmapping.
_BUFFER = 1024 * 1024


class Digest:
    """The digest of a file of known size, fed in order. The form of `etag` decides its kind.

    If the etag is not a digest, or with `check=False`, nothing is read and `result()` is the etag.
    """

    def __init__(self, etag: str, size: int, *, check: bool = True) -> None:
        self._etag = etag
        kind = digest_kind(etag) if check else None
        self._hash = None if kind is None else hashlib.new("sha256" if kind == "sha256" else "sha1")
        self._plain: Any = None
        if self._hash is not None and kind == "git-sha1":
            self._hash.update(f"blob {size}\0".encode())
            self._plain = hashlib.sha1(usedforsecurity=False)  # Artifactory's ETag is the sha1 of the bytes alone
        self._buffer = memoryview(b"")
        self.reads: bool = self._hash is not None  # whether anything has to be read

    def read(self, fd: int, start: int, stop: Callable[[], int], cancelled: Callable[[], bool]) -> int:
        """Feed the bytes of an open file from `start` up to `stop()`, which may grow during the call.

        Return where it ended, which is earlier if cancelled.
        """
        if self._hash is None:
            return stop()
        # Made in this thread: it costs a page fault for each 4 KiB.
        self._buffer = self._buffer or memoryview(bytearray(_BUFFER))
        while (left := stop() - start) > 0 and not cancelled():
            read = os.preadv(fd, [self._buffer[: min(_BUFFER, left)]], start)
            if read == 0:
                raise OSError(errno.EIO, "It has become shorter")
            self._hash.update(self._buffer[:read])
            if self._plain is not None:
                self._plain.update(self._buffer[:read])
            start += read
        return start

    def result(self) -> str:
        """The etag itself where it is the digest, in upper or lower case, or no digest; else the digest."""
        if self._hash is None:
            return self._etag
        digests = [each.hexdigest() for each in (self._hash, self._plain) if each is not None]
        return self._etag if self._etag.lower() in digests else digests[0]


def digest_of(path: str | os.PathLike[str], etag: str, cancelled: Callable[[], bool] = lambda: False) -> str:
    """The digest of a whole file, of the same kind as `etag`. Blocks."""
    with open(open_regular(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = Digest(etag, size)
        digest.read(file.fileno(), 0, lambda: size, cancelled)
        return digest.result()
