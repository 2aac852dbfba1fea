"""Which partials of a blob lie in its directory, and taking over one whose owner is gone."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from yaie_async.store.blockmap import (
    HEADER_SIZE,
    MISSING,
    WRITTEN,
    MapHeader,
    decode,
    encode_blocks,
    encode_header,
    held_bytes_of,
    is_data_name,
    is_map_name,
    map_name,
)
from yaie_async.store.diskio import write_all
from yaie_async.store.os_errors import cache_errors
from yaie_async.store.owners import Here, Takeover, is_alive, look_around
from yaie_async.store.partials import Ownership, Partial, remove


@dataclass(frozen=True, slots=True)
class _Found:
    """A map as it was read: `header` is None where it is damaged."""

    path: Path
    mtime_ns: int
    header: MapHeader | None
    state: bytearray

    @property
    def held(self) -> int:
        return 0 if self.header is None else held_bytes_of(self.state, self.header.size)


def claim_or_create(directory: Path, etag: str, size: int, *, lock_held: bool) -> Partial:
    """Take over the orphan that holds most, or make a new partial.

    Args:
        directory: the repository's `blobs`; made if it is not there.
        etag: the blob's name.
        size: of the blob, in bytes.
        lock_held: the caller holds the blob's lock. Without it every partial is another's.

    Raises:
        DiskFullError, CacheAccessError.
    """
    with cache_errors(directory, needed=size):
        found = _find(directory, etag) if lock_held else []
        if found:
            here = look_around(directory, etag, lock_held=lock_held)
            for one in sorted(found, key=lambda each: each.held, reverse=True):
                partial = _claim(one, size, here)
                if partial is not None:
                    return partial
    return Partial.create(directory, etag, size)


def discard_orphans(directory: Path, etag: str, *, lock_held: bool) -> None:
    """Remove what the dead left of this blob, once it is published. The partials of the living stay.

    Raises:
        CacheAccessError.
    """
    with cache_errors(directory), suppress(FileNotFoundError):
        # Before the maps: a map is made before its data file, so whatever is seen here has its map there.
        data = {entry.name for entry in os.scandir(directory) if is_data_name(entry.name, etag)}
        found = _find(directory, etag)
        strays = data - {one.header.data for one in found if one.header is not None}
        if not found and not strays:
            return
        here = look_around(directory, etag, lock_held=lock_held)
        for one in found:
            if _takeover(one, here) is not None:
                _remove(one)
        for name in strays:
            with suppress(FileNotFoundError):
                if _is_abandoned(os.lstat(directory / name).st_mtime_ns, here):
                    os.unlink(directory / name)


def held_bytes(directory: Path, etag: str) -> int:
    """Bytes that a claim could find at most: the disk has them already.

    Raises:
        CacheAccessError.
    """
    with cache_errors(directory):
        return max((one.held for one in _find(directory, etag)), default=0)


def others_alive(directory: Path, etag: str) -> bool:
    """Whether a living process has a partial of this blob.

    Raises:
        CacheAccessError.
    """
    with cache_errors(directory), suppress(FileNotFoundError):
        found = _find(directory, etag)
        here = look_around(directory, etag, lock_held=True)
        return any(_takeover(one, here) is None for one in found)
    return False


def _find(directory: Path, etag: str) -> list[_Found]:
    try:
        names = [entry.name for entry in os.scandir(directory) if is_map_name(entry.name, etag)]
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        # Removed meanwhile, or of a user who does not let us read it, or unreadable: not ours to claim.
        with suppress(OSError), ExitStack() as close:
            # Opened before it is asked for its mtime: a network file system looks again then.
            fd = _opened(close, directory / name, os.O_RDONLY)
            raw = _read_all(fd)
            header, state = decode(raw, etag) or (None, bytearray())
            found.append(_Found(directory / name, os.fstat(fd).st_mtime_ns, header, state))
    return found


def _takeover(one: _Found, here: Here) -> Takeover | None:
    if one.header is None:
        return Takeover.IN_PLACE if _is_abandoned(one.mtime_ns, here) else None
    owner = one.header.owner
    return here.takeover(owner, released=one.header.released, alive=is_alive(owner), mtime_ns=one.mtime_ns)


def _is_abandoned(mtime_ns: int, here: Here) -> bool:
    """Whether a file that names no owner may go. A wrong guess costs its owner a copy (`Partial.rescue`)."""
    return here.lock_held and (here.locks_work or here.is_silent(mtime_ns))


def _claim(one: _Found, size: int, here: Here) -> Partial | None:
    takeover = _takeover(one, here)
    if takeover is None:
        return None
    if one.header is None or one.header.size != size:
        _remove(one)
        return None
    state = one.state
    if one.header.owner.boot != here.owner.boot:
        # That machine may have crashed: what it had not synced may be holes.
        state = bytearray(MISSING if value == WRITTEN else value for value in state)
    with suppress(FileNotFoundError, PermissionError):
        if takeover is Takeover.IN_PLACE:
            return _claim_in_place(one, one.header, state, here)
        return _claim_by_copy(one, one.header, state, here)
    return None


def _claim_in_place(one: _Found, old: MapHeader, state: bytearray, here: Here) -> Partial | None:
    """Go on in the same files. Of several claimers one wins the rename.

    Where locks don't work another one may have read the map before we renamed it, and rename it again: each
    looks at the other's step after its own (rename, then header; header, then name), so at most one of them
    believes that it owns the partial.
    """
    header = replace(old, owner=here.owner, released=False)
    with ExitStack() as undo:
        map_fd = _opened(undo, one.path, os.O_RDWR)
        fd = _opened_data(undo, one, old)
        if fd is None:
            return None
        path = _rename(one, old.etag)
        if os.pread(map_fd, HEADER_SIZE, 0) != encode_header(old):
            os.rename(path, one.path)
            return None
        # Before the header: beside our boot id every block would be believed.
        write_all(map_fd, encode_blocks(header, state), HEADER_SIZE)
        write_all(map_fd, encode_header(header), 0)
        partial = Partial(path, header, state, (fd, map_fd))
        if partial.touch() is Ownership.OURS:
            undo.pop_all()
            return partial
    return None


def _claim_by_copy(one: _Found, old: MapHeader, state: bytearray, here: Here) -> Partial | None:
    """Go on in new files: the silent owner may wake up in the middle of a `pwrite`, after any check of ours."""
    with ExitStack() as close:
        map_fd = _opened(close, one.path, os.O_RDWR)
        fd = _opened_data(close, one, old)
        if fd is None:
            return None
        path = _rename(one, old.etag)
        # Tells the owner that this was a claim and no pruning. No boot: should we die here, the owner is
        # still only silent, so nobody may go on in place.
        write_all(map_fd, encode_header(replace(old, owner=replace(here.owner, boot=""))), 0)
        partial = Partial.create(path.parent, old.etag, old.size)
        try:
            partial.copy_from(fd, state)
        except BaseException:
            partial.discard()
            raise
        remove(path, path.parent / old.data)
        return partial


def _rename(one: _Found, etag: str) -> Path:
    """The one atomic step of a claim. FileNotFoundError: another one has made it."""
    path = one.path.with_name(map_name(etag, secrets.token_hex(4)))
    os.rename(one.path, path)
    return path


def _remove(one: _Found) -> None:
    with suppress(OSError):  # what can't be removed is in nobody's way
        if one.header is None:
            one.path.unlink(missing_ok=True)  # which data file was its own is not known: `discard_orphans`
        else:
            remove(one.path, one.path.parent / one.header.data)


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_NOFOLLOW)  # in a shared cache a name may be a trap
    stack.callback(os.close, fd)
    return fd


def _opened_data(stack: ExitStack, one: _Found, header: MapHeader) -> int | None:
    """The data file, or None if it is not what its map says: then both are removed."""
    try:
        fd = _opened(stack, one.path.parent / header.data, os.O_RDWR)
    except PermissionError:  # of a user who does not let us write it
        return None
    except OSError:  # most likely published, and killed before the map was removed
        _remove(one)
        return None
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_size == header.size:
        return fd
    _remove(one)
    return None


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)
