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
        self._hashes: list[Any] = [hashlib.sha256()] if kind == "sha256" else []
        if kind == "git-sha1":  # Artifactory's ETag is the sha1 of the bytes alone
            self._hashes = [hashlib.sha1(head, usedforsecurity=False) for head in (f"blob {size}\0".encode(), b"")]
        self._buffer = memoryview(b"")
        self.reads: bool = bool(self._hashes)  # whether anything has to be read

    def read(self, fd: int, start: int, stop: Callable[[], int], cancelled: Callable[[], bool]) -> int:
        """Feed the bytes of an open file from `start` to `stop()`, which may grow meanwhile; return where it ended."""
        if not self._hashes:
            return stop()
        # Made in this thread: it costs a page fault for each 4 KiB.
        self._buffer = self._buffer or memoryview(bytearray(_BUFFER))
        while (left := stop() - start) > 0 and not cancelled():
            read = os.preadv(fd, [self._buffer[: min(_BUFFER, left)]], start)
            if read == 0:
                raise OSError(errno.EIO, "It has become shorter")
            for each in self._hashes:
                each.update(self._buffer[:read])
            start += read
        return start

    def result(self) -> str:
        """The etag itself where it is the digest, in upper or lower case, or no digest; else the digest."""
        digests = [each.hexdigest() for each in self._hashes]
        return digests[0] if digests and self._etag.lower() not in digests else self._etag


def digest_of(path: str | os.PathLike[str], etag: str, cancelled: Callable[[], bool] = lambda: False) -> str:
    """The digest of a whole file, of the same kind as `etag`. Blocks."""
    with open(open_regular(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = Digest(etag, size)
        digest.read(file.fileno(), 0, lambda: size, cancelled)
        return digest.result()
