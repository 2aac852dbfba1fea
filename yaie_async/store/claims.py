"""Finding the partials of a blob on the disk, and claiming one whose owner is gone.

`directory` is always the repository's `blobs`. In a shared cache a link in it may be a trap. The caller of
`claim_or_create` and `discard_orphans` holds the blob's lock. All functions block, and raise CacheAccessError, or
DiskFullError where they write.
"""

import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from yaie_async.store.blockmap import (
    BLOCK,
    DATA,
    HEADER_SIZE,
    LARGEST_MAP,
    MAP,
    MISSING,
    SYNCED,
    MapHeader,
    Slot,
    decode,
    file_name,
    is_name_of,
)
from yaie_async.store.diskio import open_regular, write_all
from yaie_async.store.os_errors import cache_errors
from yaie_async.store.owners import Claimer, probe
from yaie_async.store.partials import Ownership, Partial, remove


@dataclass(frozen=True, slots=True)
class _FoundMap:
    """A map as it was read; `header` is None where it is damaged."""

    path: Path
    mtime_ns: int
    header: MapHeader | None
    state: bytearray
    slots: Mapping[int, Slot]

    @property
    def data_path(self) -> Path | None:
        return None if self.header is None else self.path.with_name(self.header.data)

    @property
    def recorded_bytes(self) -> int:
        if self.header is None or not self.state:
            return 0
        return self.header.recorded_bytes(self.state) + sum(slot.position % BLOCK for slot in self.slots.values())


def claim_or_create(directory: Path, etag: str, size: int) -> Partial:
    """Claim the orphan with the most bytes, or make a new partial, and `directory` if it does not exist."""
    with cache_errors(directory, needed=size):
        if maps := _read_maps(directory, etag, size):
            claimer = probe(directory, etag)
            for found in sorted(maps, key=lambda each: each.recorded_bytes, reverse=True):
                partial = _claim(found, size, claimer)
                if partial is not None:
                    return partial
    return Partial.create(directory, etag, size)


def discard_orphans(directory: Path, etag: str) -> None:
    """Remove the partials of dead owners once the blob is published; those of living owners stay."""
    with cache_errors(directory), suppress(FileNotFoundError):
        # Listed before the maps: a map is made before its data file, so each data file seen here has its map by then.
        data = _paths(directory, etag, DATA)
        maps = _read_maps(directory, etag)
        strays = set(data) - {found.data_path for found in maps}
        if not maps and not strays:
            return
        claimer = probe(directory, etag)
        for found in maps:
            if claimer.mode(found.header, found.mtime_ns) is not None:
                remove(found.path, found.data_path)
        for path in strays:
            with suppress(OSError):
                if claimer.mode(None, path.lstat().st_mtime_ns) is not None:
                    os.unlink(path)


def resumable_bytes(directory: Path, etag: str, size: int) -> int:
    """Bytes that a claim could find at most: the disk already has them."""
    with cache_errors(directory):
        return max((found.recorded_bytes for found in _read_maps(directory, etag, size)), default=0)


def has_live_owner(directory: Path, etag: str) -> bool:
    """Whether a living process owns a partial of this blob."""
    with cache_errors(directory), suppress(FileNotFoundError):
        maps = _read_maps(directory, etag)
        claimer = probe(directory, etag)
        return any(claimer.mode(found.header, found.mtime_ns) is None for found in maps)
    return False


def _paths(directory: Path, etag: str, suffix: str) -> list[Path]:
    return [Path(entry) for entry in os.scandir(directory) if is_name_of(entry.name, etag, suffix)]


def _read_maps(directory: Path, etag: str, size: int = -1) -> list[_FoundMap]:
    """All maps of a blob; the blocks are known of those of `size` only."""
    maps = []
    with suppress(FileNotFoundError):
        for path in _paths(directory, etag, MAP):
            # A map that was removed meanwhile or can't be read (another user's, for example) can't be claimed either.
            # It is opened before its mtime is read: a network file system then asks its server again.
            with suppress(OSError), open(open_regular(path, follow=False), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                raw = file.read(min(status.st_size, LARGEST_MAP))
                header, state = decode(raw, etag, size) or (None, bytearray())
                slots = header.decode_slots(raw[HEADER_SIZE + header.blocks :], state) if header and state else {}
                maps.append(_FoundMap(path, status.st_mtime_ns, header, state, slots))
    return maps


def _claim(found: _FoundMap, size: int, claimer: Claimer) -> Partial | None:
    mode, header = claimer.mode(found.header, found.mtime_ns), found.header
    if mode is None:
        return None
    if header is None or header.size != size:
        remove(found.path, found.data_path)
        return None
    if header.owner.boot != claimer.process.boot:
        # The machine may have crashed: blocks that were not synced may be holes.
        state = bytearray(value if value == SYNCED else MISSING for value in found.state)
        found = replace(found, state=state, slots={})
    with suppress(FileNotFoundError, PermissionError), ExitStack() as opened:
        map_fd = open_regular(found.path, os.O_RDWR, follow=False)
        opened.callback(os.close, map_fd)
        fd = _open_data(found, header, opened)
        if fd is None:
            return None
        # The one atomic step of a claim. FileNotFoundError: another process has claimed the partial.
        path = found.path.with_name(file_name(header.etag, secrets.token_hex(4), MAP))
        os.rename(found.path, path)
        if mode == "by copy" or any(map(_is_shared, (fd, map_fd))):
            return _continue_by_copy(path, header, found, (fd, map_fd), claimer)
        if os.pread(map_fd, HEADER_SIZE, 0) != header.encode():
            os.rename(path, found.path)
            return None
        partial = _continue_in_place(path, header, found, (fd, map_fd), claimer)
        if partial.touch() is Ownership.OURS:
            opened.pop_all()
            return partial
    return None


def _continue_in_place(path: Path, old: MapHeader, found: _FoundMap, fds: tuple[int, int], claimer: Claimer) -> Partial:
    """Continue in the same files.

    One of several claimers wins the rename. Where locks don't work, another one may have read the map before that
    rename and rename it again. Each checks for the other's step after its own (the header after the rename, the name
    after writing the header), so at most one of them owns the partial in the end.
    """
    header = replace(old, owner=claimer.process, released=False)
    # Blocks before header: beside this boot's id every block would be believed.
    write_all(fds[1], header.encode_blocks(found.state), HEADER_SIZE)
    if not found.slots:
        os.ftruncate(fds[1], HEADER_SIZE + header.blocks)
    os.lstat(path)  # FileNotFoundError: a faster process has claimed the map meanwhile, and its header stays.
    write_all(fds[1], header.encode(), 0)
    return Partial(path, header, found.state, fds, found.slots)


def _continue_by_copy(path: Path, old: MapHeader, found: _FoundMap, fds: tuple[int, int], claimer: Claimer) -> Partial:
    """Continue in new files, because others may write into the old ones after any check made here.

    The silent owner may wake up, and a user who can write into a file now can write into the blob that it becomes.
    """
    # The new header shows the owner that the map was claimed and not pruned. It has no boot id: if this process dies
    # here, the old owner still counts as silent, and not as dead, so that no process continues in place.
    write_all(fds[1], replace(old, owner=replace(claimer.process, boot="")).encode(), 0)
    begun = [slot.position for slot in found.slots.values()]
    partial = Partial.copy(path.parent, old, fds[0], found.state, begun)
    remove(path, path.with_name(old.data))
    return partial


def _is_shared(fd: int) -> bool:
    """Whether a file is another user's, has a second name, or can be written by everybody."""
    file = os.fstat(fd)
    return file.st_uid != os.geteuid() or file.st_nlink > 1 or bool(file.st_mode & stat.S_IWOTH)


def _open_data(found: _FoundMap, header: MapHeader, opened: ExitStack) -> int | None:
    """The data file; None where it can't be used. Where it is not what its map says, both are removed."""
    try:
        fd = open_regular(found.path.with_name(header.data), os.O_RDWR, follow=False)
    except PermissionError:  # another user's file
        return None
    except OSError:  # most likely the owner was killed between publishing the blob and removing the map
        pass
    else:
        opened.callback(os.close, fd)
        if os.fstat(fd).st_size == header.size:
            return fd
    remove(found.path, found.data_path)
    return None
