"""Reads and writes at an offset, of sparse files, and what makes them last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_COPY_SIZE = 1 << 20

# Not everywhere: macOS has none.
fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def copy_sparse(source: int, target: int, size: int) -> Iterator[int]:
    """Copy what is no hole in the first `size` bytes; yield after each piece how many bytes it had."""
    buffer = memoryview(bytearray(_COPY_SIZE))
    at = 0
    for start, stop in extents(source, size):
        at = start
        while at < stop:
            count = os.preadv(source, [buffer[: min(_COPY_SIZE, stop - at)]], at)
            if count == 0:
                msg = "a partial's data file is shorter than its blob"
                raise OSError(msg)
            write_all(target, buffer[:count], at)
            at += count
            yield count


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of the first `size` bytes that are no holes."""
    stop = 0
    while stop < size:
        try:
            start = os.lseek(fd, stop, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole to the end
            return
        stop = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, stop


def sync_directory(directory: Path) -> None:
    """Make the names in it last. A file system that can't is no reason to fail: its files are whole."""
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
