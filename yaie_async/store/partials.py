"""A partial: the data file of a blob that is being fetched, and the map that lets another process go on.

    blobs/<etag>.yaie-<8 hex>.incomplete       the data: as long as the blob from the start, sparse
    blobs/<etag>.yaie-<8 hex>.map.incomplete   the map (blockmap.py)

What is promised. After a kill -9 at any moment, every block that the map claims is in the data file: it was
written before, and the page cache outlives the process. After a power loss pages reach the disk in any order,
so only blocks recorded by `sync` after an `fdatasync` are believed once the boot id has changed. The names end
in `.incomplete` so that the official tools find and clean them, and never are `<etag>.incomplete`, which old
clients continue at its end.

All methods block. Writers on several threads may share one Partial; whoever calls `rescue`, `publish`, `keep`
or `discard` has seen them end before, since those close the descriptors.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path

from yaie_async.store.arriving_file import ArrivingFile
from yaie_async.store.blockmap import (
    HEADER_SIZE,
    SYNCED,
    WRITTEN,
    MapHeader,
    data_name,
    encode_blocks,
    encode_header,
    held_bytes_of,
    map_name,
    marks,
)
from yaie_async.store.diskio import copy_sparse, fdatasync, sync_directory, write_all
from yaie_async.store.os_errors import cache_errors
from yaie_async.store.owners import this_process

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL


class Ownership(Enum):
    """What has become of a partial since it was last touched."""

    OURS = "ours"
    LOST = "another process has claimed it: stop writing, wait for that one, never claim back"
    PRUNED = "its files were removed: `rescue` goes on with the bytes that the open descriptor still has"


class Partial:
    """A partial that this process owns.

    Attributes:
        fd: the data file, for `pwrite` and `pread`; -1 once closed.
        etag: the blob's name.
        size: of the blob and of the data file, in bytes.
        arriving: told of what is recorded, if there is one.
    """

    fd: int

    def __init__(self, map_path: Path, header: MapHeader, state: bytearray, fds: tuple[int, int]) -> None:
        self.etag: str = header.etag
        self.size: int = header.size
        self.fd, self._map_fd = fds
        self.arriving: ArrivingFile | None = None
        self._directory = map_path.parent
        self._map_path = map_path
        self._data_path = map_path.with_name(header.data)
        self._header = header
        self._page = encode_header(header)
        self._state = state
        self._written, self._synced = marks(header, WRITTEN), marks(header, SYNCED)
        self._lock = threading.Lock()

    @classmethod
    def create(cls, directory: Path, etag: str, size: int) -> Partial:
        """Make a new, empty partial; the directory too, if it is gone.

        The map comes first: a data file without a map is nobody's.

        Raises:
            DiskFullError, CacheAccessError.
        """
        unique = secrets.token_hex(4)
        map_path = directory / map_name(etag, unique)
        header = MapHeader(etag, size, data_name(etag, unique), this_process())
        state = bytearray(header.blocks)
        with cache_errors(directory, needed=size):
            directory.mkdir(parents=True, exist_ok=True)
            # The kernel applies the umask or the directory's default ACL; nothing is changed afterwards.
            map_fd = os.open(map_path, _NEW_FILE, 0o666)
            fd = -1
            try:
                write_all(map_fd, encode_header(header) + encode_blocks(header, state), 0)
                fd = os.open(directory / header.data, _NEW_FILE, 0o666)
                os.ftruncate(fd, size)
            except BaseException:
                cls(map_path, header, state, (fd, map_fd)).discard()
                raise
        return cls(map_path, header, state, (fd, map_fd))

    @property
    def path(self) -> Path:
        """The data file."""
        return self._data_path

    @property
    def blocks(self) -> bytes:
        """One byte a block, 0 where it is missing."""
        return bytes(self._state)

    @property
    def held(self) -> int:
        """Bytes of the blob that are there."""
        return held_bytes_of(self._state, self.size)

    def record(self, first: int, stop: int) -> None:
        """Record that blocks `first` to `stop` (not included) are wholly written: call it after the `pwrite`.

        Raises:
            DiskFullError, CacheAccessError.
        """
        with self._lock, cache_errors(self._map_path):
            write_all(self._map_fd, self._written[first:stop], HEADER_SIZE + first)
            self._state[first:stop] = bytes([WRITTEN]) * (stop - first)
        if self.arriving is not None:
            self.arriving.landed(first, stop)

    def sync(self) -> None:
        """Put what is recorded on the disk (`fdatasync`), and record that.

        Raises:
            DiskFullError, CacheAccessError: by then the file system has lost data that it had accepted.
        """
        with self._lock:
            pending = [match.span() for match in re.finditer(b"%c+" % WRITTEN, self._state)]
        with cache_errors(self._data_path):
            fdatasync(self.fd)
            for first, stop in pending:
                with self._lock:
                    write_all(self._map_fd, self._synced[first:stop], HEADER_SIZE + first)
                    self._state[first:stop] = bytes([SYNCED]) * (stop - first)

    def touch(self) -> Ownership:
        """Show that the owner lives, every 5 s; say whether it still is the owner.

        Raises:
            CacheAccessError.
        """
        with cache_errors(self._map_path):
            if os.pread(self._map_fd, HEADER_SIZE, 0) != self._page:
                return Ownership.LOST  # a claimer has written its own
            if 0 in (os.fstat(self._map_fd).st_nlink, os.fstat(self.fd).st_nlink):
                return Ownership.PRUNED
            if not self._is_in_place():
                return Ownership.LOST  # a claimer has renamed it
            os.utime(self._map_fd)
            return Ownership.OURS

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self._map_path), os.fstat(self._map_fd))
        except FileNotFoundError:
            return False

    def rescue(self) -> Partial:
        """Copy all that was written into a new partial, and close this one. For one that is PRUNED.

        If it fails this one stays as it was, to be tried again or discarded.

        Raises:
            DiskFullError, CacheAccessError.
        """
        fresh = Partial.create(self._directory, self.etag, self.size)
        try:
            fresh.copy_from(self.fd, self._state)
        except BaseException:
            fresh.discard()
            raise
        self.discard()
        return fresh

    def copy_from(self, source: int, state: bytes | bytearray) -> None:
        """Fill a new partial with the bytes of another data file, and record the blocks that `state` has.

        Raises:
            DiskFullError, CacheAccessError.
        """
        with cache_errors(self._data_path, needed=held_bytes_of(state, self.size)):
            for _ in copy_sparse(source, self.fd, self.size):
                os.utime(self._map_fd)  # copying 40 GB takes longer than the silence that makes an orphan
        for match in re.finditer(rb"[^\0]+", state):
            self.record(*match.span())

    def publish(self) -> Path:
        """Give the finished data file its blob's name, durably; return its path. The partial is gone then.

        A kill at any point leaves either a partial with all its blocks or the blob (and perhaps a map without
        data, which `discard_orphans` removes). Pruned or removed meanwhile: the bytes are copied first.

        Raises:
            DiskFullError, CacheAccessError: the partial stays.
        """
        blob = self._directory / self.etag
        with cache_errors(blob):
            fdatasync(self.fd)
            try:
                os.replace(self._data_path, blob)
            except FileNotFoundError:
                return self.rescue().publish()
            with suppress(FileNotFoundError):
                os.unlink(self._map_path)
            self._close()
            sync_directory(self._directory)
        return blob

    def keep(self) -> None:
        """Close it and leave it to the next who wants it, this process or another. Never raises."""
        with suppress(OSError):
            # Not into the map of a claimer. Should the write fail, it is an orphan once this process is gone.
            if self._is_in_place() and os.pread(self._map_fd, HEADER_SIZE, 0) == self._page:
                write_all(self._map_fd, encode_header(replace(self._header, released=True)), 0)
        self._close()

    def discard(self) -> None:
        """Close it and remove it, unless another process has claimed it. Never raises."""
        with suppress(OSError):
            remove(self._map_path, self._data_path)
        self._close()

    def _close(self) -> None:
        fds, self.fd, self._map_fd = (self.fd, self._map_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def remove(map_path: Path, data_path: Path) -> None:
    """Remove a partial. Only who removed the map removes the data: a claimer renames the map first."""
    try:
        os.unlink(map_path)
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):
        os.unlink(data_path)
