"""A partial: the data file of a blob that is being fetched, and the map that lets another process resume it.

    blobs/<etag>.yaie-<8 hex>.incomplete       the data: sparse, and as long as the blob from the start
    blobs/<etag>.yaie-<8 hex>.map.incomplete   the map (blockmap.py)

Guarantees: after `kill -9` at any moment, every byte that the map records is in the data file, because it was
written first and the page cache outlives the process. The map lags behind the data file by less than `STEP` for each
block that is being written, and by nothing after `keep`. After a power loss pages may have reached the disk in any
order, so under another boot id only blocks recorded by `sync`, after an `fdatasync`, are believed. The names end in
`.incomplete` so that the official tools remove them, but are never `<etag>.incomplete`: old clients append to that.

All methods block. Several threads may write to one Partial. `rescue`, `publish`, `keep` and `discard` close the
descriptors, so their caller has to wait for those threads first. `keep` and `discard` never raise; the other methods
raise CacheAccessError, or DiskFullError where they write.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType

from yaie_async.store.blockmap import (
    BLOCK,
    DATA,
    HEADER_SIZE,
    MAP,
    MOST_SLOTS,
    SLOT,
    SYNCED,
    WRITTEN,
    MapHeader,
    Slot,
    block_count,
    file_name,
)
from yaie_async.store.diskio import copy_sparse, fdatasync, sync_directory, write_all
from yaie_async.store.os_errors import cache_errors
from yaie_async.store.owners import this_process

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL
# Bytes: how far a block is written between two rewritings of its slot. With the 128 KiB that may be gathered before
# they are written (fetch/body.py) a kill costs less than 256 KiB.
STEP = 128 * 1024


class Ownership(Enum):
    """Whether a partial still is this process's."""

    OURS = "ours"
    LOST = "another process has claimed it: stop writing, wait for that process, never claim back"
    PRUNED = "its files were removed: `rescue` saves the bytes, which the open descriptor still has"


class Partial:
    """A partial that this process owns."""

    fd: int  # of the data file, for `pwrite` and `pread`; -1 once closed

    def __init__(
        self,
        map_path: Path,
        header: MapHeader,
        state: bytearray,
        fds: tuple[int, int],
        slots: Mapping[int, Slot] = MappingProxyType({}),
    ) -> None:
        self.path: Path = map_path.with_name(header.data)  # the data file
        self.fd, self._map_fd = fds
        self.etag: str = header.etag
        self.size: int = header.size  # of the blob, and of the data file
        self.state: bytearray = state  # of each block; `record` and `sync` change it
        self._map_path = map_path
        self._header = header
        self._page = header.encode()
        self._marks = header.marks()
        self._lock = threading.Lock()
        self._slots = dict(slots)  # of the blocks that are begun, as they are in the map
        self._begun = {block: slot.position for block, slot in slots.items()}  # how far these are written

    @classmethod
    def create(cls, directory: Path, etag: str, size: int) -> Partial:
        """Make a new, empty partial, and the directory if it does not exist.

        The map is made first: `discard_orphans` removes a data file that has no map.
        """
        unique = secrets.token_hex(4)
        map_path = directory / file_name(etag, unique, MAP)
        header = MapHeader(etag, size, file_name(etag, unique, DATA), this_process())
        with cache_errors(directory, needed=size):
            directory.mkdir(parents=True, exist_ok=True)
            # The kernel applies the umask or the directory's default ACL; the mode is never changed afterwards.
            partial = cls(map_path, header, bytearray(header.blocks), (-1, os.open(map_path, _NEW_FILE, 0o666)))
            try:
                write_all(partial._map_fd, partial._page + partial.state, 0)
                partial.fd = os.open(partial.path, _NEW_FILE, 0o666)
                os.ftruncate(partial.fd, size)
            except BaseException:
                partial.discard()
                raise
        return partial

    @classmethod
    def copy(
        cls, directory: Path, header: MapHeader, source: int, state: bytes | bytearray, begun: Iterable[int]
    ) -> Partial:
        """Make a new partial with the bytes of another data file that are recorded by `state` and as `begun`."""
        partial = cls.create(directory, header.etag, header.size)
        try:
            with cache_errors(partial.path, needed=header.recorded_bytes(state)):
                for _ in copy_sparse(source, partial.fd, header.size):
                    partial.touch()  # copying 40 GB takes longer than the silence that makes an orphan
            for match in re.finditer(rb"[^\0]+", state):
                partial.record(*match.span())
            for position in begun:
                partial.extend(position // BLOCK * BLOCK, position)
        except BaseException:
            partial.discard()
            raise
        return partial

    @property
    def blocks(self) -> bytes:
        """One byte per block, 0 where the block is missing."""
        return bytes(self.state)

    @property
    def begun(self) -> tuple[tuple[int, int], ...]:
        """The written beginnings of blocks that are not written in full, as (start, stop) in bytes."""
        return tuple((block * BLOCK, position) for block, position in list(self._begun.items()))

    @property
    def recorded_bytes(self) -> int:
        """Bytes of the blob in recorded blocks and their beginnings."""
        return self._header.recorded_bytes(self.state) + sum(stop - start for start, stop in self.begun)

    def extend(self, start: int, stop: int) -> None:
        """Record that bytes `start` to `stop` (exclusive) are written; call it after the `pwrite`.

        What is before `start` in its block is recorded already.
        """
        first, last = start // BLOCK, stop // BLOCK if stop < self.size else block_count(stop)
        if first < last:
            self.record(first, last)
        if last < len(self.state) and stop > last * BLOCK:
            self._begun[last] = stop
            slot = self._slots.get(last)
            if stop - (slot.position if slot else last * BLOCK) >= STEP:
                with cache_errors(self._map_path), self._lock:
                    self._save(last, stop)

    def record(self, first: int, stop: int) -> None:
        """Record that blocks `first` to `stop` (exclusive) are written in full; call it after the `pwrite`."""
        with cache_errors(self._map_path):
            self._mark(first, stop, WRITTEN)

    def sync(self) -> None:
        """Put all recorded blocks on the disk, and record that. An error means that accepted data is lost."""
        with self._lock:
            pending = [match.span() for match in re.finditer(b"%c+" % WRITTEN, self.state)]
        with cache_errors(self.path):
            fdatasync(self.fd)
            for first, stop in pending:
                self._mark(first, stop, SYNCED)

    def _mark(self, first: int, stop: int, value: int) -> None:
        with self._lock:
            write_all(self._map_fd, self._marks[value][first:stop], HEADER_SIZE + first)
            self.state[first:stop] = bytes([value]) * (stop - first)
            for block in range(first, stop):
                self._begun.pop(block, None)
                self._slots.pop(block, None)  # its number is free now

    def _save(self, block: int, position: int) -> None:
        """Write the slot of a block. The caller holds the lock."""
        used = {slot.number for slot in self._slots.values()}
        slot = self._slots.get(block)
        number = slot.number if slot else next(free for free in itertools.count() if free not in used)
        if number < MOST_SLOTS:
            write_all(self._map_fd, self._header.encode_slot(position), HEADER_SIZE + len(self.state) + number * SLOT)
            self._slots[block] = Slot(position, number)

    def touch(self) -> Ownership:
        """Update the map's mtime to show that the owner lives (call it every 5 s); return whether it still owns it."""
        with cache_errors(self._map_path):
            if os.pread(self._map_fd, HEADER_SIZE, 0) != self._page:
                return Ownership.LOST  # a claimer has written its header
            if 0 in (os.fstat(self._map_fd).st_nlink, os.fstat(self.fd).st_nlink):
                return Ownership.PRUNED
            with suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(self._map_path), os.fstat(self._map_fd)):
                    os.utime(self._map_fd)
                    return Ownership.OURS
            return Ownership.LOST  # a claimer has renamed the map

    def rescue(self) -> Partial:
        """Copy the bytes of a PRUNED partial into a new one, and close this one. After an error it is unchanged."""
        rescued = Partial.copy(self.path.parent, self._header, self.fd, self.state, list(self._begun.values()))
        self.discard()
        return rescued

    def publish(self) -> Path:
        """Give the finished data file its blob's name, durably, and return that path. The partial is gone afterwards.

        A kill at any point leaves either a partial with all its blocks or the blob, perhaps with a map without data,
        which `discard_orphans` removes. If the files were pruned meanwhile, the bytes are copied first. After an error
        the partial stays.
        """
        blob = self.path.with_name(self.etag)
        with cache_errors(blob):
            fdatasync(self.fd)
            try:
                os.replace(self.path, blob)
            except FileNotFoundError:
                return self.rescue().publish()
            with suppress(FileNotFoundError):
                os.unlink(self._map_path)
            self._close()
            sync_directory(blob.parent)
        return blob

    def keep(self) -> None:
        """Close the partial and leave it for the next claim, by this process or another."""
        with suppress(OSError):
            # Never written into a claimer's map. If the write fails, the partial is an orphan once this process ends.
            if self.touch() is not Ownership.LOST:
                with self._lock:
                    for block, position in self._begun.items():
                        self._save(block, position)
                write_all(self._map_fd, replace(self._header, released=True).encode(), 0)
        self._close()

    def discard(self) -> None:
        """Close and remove the partial, unless another process has claimed it."""
        remove(self._map_path, self.path)
        self._close()

    def _close(self) -> None:
        fds, self.fd, self._map_fd = (self.fd, self._map_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def remove(map_path: Path, data_path: Path | None) -> None:
    """Remove the files of a partial; what can't be removed stays. Never raises.

    The data file goes only if the map could be removed: a claimer renames the map first.
    """
    with suppress(OSError):
        os.unlink(map_path)
        if data_path is not None:
            os.unlink(data_path)
