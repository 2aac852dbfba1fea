"""Reads and writes at offsets, copies of sparse files, and syncs to the disk."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_COPY_SIZE = 1 << 20
# Bytes of a file that is read as a whole. The largest of the Hub, indexes and listings, have some 30 MB.
LARGEST = 256 << 20

fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, follow: bool = True) -> int:
    """Open a regular file of a cache in which others may have put anything: a FIFO would block the open for ever.

    Raises OSError also where it is no regular file, or a link and `follow` is False.
    """
    fd = os.open(path, flags | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW), 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "It is not a regular file", os.fspath(path))
    return fd


def read_regular(path: str | os.PathLike[str], limit: int = LARGEST) -> bytes:
    """The content of a regular file; OSError as `open_regular`, and where it has more than `limit` bytes."""
    with open(open_regular(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"It has more than {limit:,} bytes", os.fspath(path))
        return file.read(size)  # which makes room for as many


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def copy_sparse(source: int, target: int, size: int) -> Iterator[int]:
    """Copy the first `size` bytes without their holes; yield the size of each copied piece."""
    buffer = memoryview(bytearray(_COPY_SIZE))
    for start, stop in _extents(source, size):
        at = start
        while at < stop:
            count = os.preadv(source, [buffer[: min(_COPY_SIZE, stop - at)]], at)
            if count == 0:
                raise OSError("The data file of a partial is shorter than its blob.")
            write_all(target, buffer[:count], at)
            at += count
            yield count


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of the first `size` bytes that are not holes."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(fd, stop, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        stop = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, stop


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Errors are ignored: the content of the files does not depend on it."""
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
