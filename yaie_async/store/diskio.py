"""Reads and writes at offsets, copies of sparse files, and syncs to the disk."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_COPY_SIZE = 1 << 20

fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


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
                msg = "The data file of a partial is shorter than its blob."
                raise OSError(msg)
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
