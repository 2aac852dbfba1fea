"""The map beside a partial: which blocks of its data file are there, and whose they are. Plain data.

One page of header (a checksum, then JSON), then one byte a block. A block's byte is 0 until its bytes are
written; then it is a value that depends on the data file's name and the block's number, and with the top bit
set once `fdatasync` has returned for them. A plain 1 would make any stray byte a claim: here a map with a byte
that is none of the three is damaged as a whole, and a map of one file never passes for another's. (A stray
byte still hits the right value once in 127 times. The digest of the whole file has the last word.)
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import asdict, dataclass
from typing import Any, Final

BLOCK: Final = 4 << 20
HEADER_SIZE: Final = 4096  # a page: rewriting it is one `pwrite` that a kill can't tear
VERSION: Final = 1

MISSING: Final = 0
WRITTEN: Final = 1  # the page cache has it: it survives the process, not the machine
SYNCED: Final = 2  # it survives a power loss

_SYNCED_BIT: Final = 0x80
_TO_VALUE: Final = bytes(1 + byte % 127 for byte in range(256))
_TO_SYNCED: Final = bytes(byte | _SYNCED_BIT for byte in range(256))


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, so that another one can tell whether it still runs.

    Attributes:
        host: the machine's name.
        boot: the kernel's id of this boot, or "" where it has none.
        pid_namespace: in which `pid` counts, or "".
        pid: the process id.
        started: when it started, in ticks since boot: process ids are used again.
    """

    host: str
    boot: str
    pid_namespace: str
    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class MapHeader:
    """What the map says about its partial.

    Attributes:
        etag: the blob's name.
        size: of the blob, in bytes.
        data: the name of the data file, in the same directory.
        owner: who writes it.
        released: the owner has closed it, and writes it no more.
    """

    etag: str
    size: int
    data: str
    owner: Owner
    released: bool = False

    @property
    def blocks(self) -> int:
        return block_count(self.size)


def block_count(size: int) -> int:
    return -(-size // BLOCK)


def held_bytes_of(state: bytes | bytearray, size: int) -> int:
    """Bytes in the blocks that are not MISSING."""
    held = (len(state) - state.count(0)) * BLOCK
    short = len(state) * BLOCK - size
    return held - short if state and state[-1] else held


def data_name(etag: str, unique: str) -> str:
    return f"{etag}.yaie-{unique}.incomplete"


def map_name(etag: str, unique: str) -> str:
    return f"{etag}.yaie-{unique}.map.incomplete"


def is_data_name(name: str, etag: str) -> bool:
    """Whether `name` is that of a data file of this blob: nothing else is ever opened or removed for it."""
    return re.fullmatch(rf"{re.escape(etag)}\.yaie-[0-9a-f]{{8}}\.incomplete", name) is not None


def is_map_name(name: str, etag: str) -> bool:
    return re.fullmatch(rf"{re.escape(etag)}\.yaie-[0-9a-f]{{8}}\.map\.incomplete", name) is not None


def encode_header(header: MapHeader) -> bytes:
    """The map's first page."""
    fields = {"version": VERSION, "block_size": BLOCK, **asdict(header)}
    text = json.dumps(fields, ensure_ascii=False).encode()
    body = text.ljust(HEADER_SIZE - 9) + b"\n"
    if len(body) != HEADER_SIZE - 8:
        msg = f"the names of a partial are longer than its header: {len(text)} bytes"
        raise ValueError(msg)
    return b"%08x" % zlib.crc32(body) + body


def encode_blocks(header: MapHeader, state: bytes | bytearray) -> bytes:
    """The bytes that follow the header, for a state of MISSING, WRITTEN or SYNCED a block."""
    written, synced = marks(header, WRITTEN), marks(header, SYNCED)
    return bytes((0, written[i], synced[i])[value] for i, value in enumerate(state))


def marks(header: MapHeader, value: int) -> bytes:
    """The byte of each block that is WRITTEN or SYNCED."""
    written = hashlib.shake_128(header.data.encode()).digest(header.blocks).translate(_TO_VALUE)
    return written if value == WRITTEN else written.translate(_TO_SYNCED)


def decode(raw: bytes, etag: str) -> tuple[MapHeader, bytearray] | None:
    """The header and the state of each block, or None for a map that is damaged, unknown or another blob's."""
    header = decode_header(raw[:HEADER_SIZE], etag)
    blocks = raw[HEADER_SIZE:]
    if header is None or len(blocks) != header.blocks:
        return None
    state = bytearray(len(blocks))
    for i, (byte, written) in enumerate(zip(blocks, marks(header, WRITTEN), strict=True)):
        if byte == written:
            state[i] = WRITTEN
        elif byte == written | _SYNCED_BIT:
            state[i] = SYNCED
        elif byte:
            return None
    return header, state


def decode_header(page: bytes, etag: str) -> MapHeader | None:
    """The header in the map's first page, or None if it is damaged, unknown or another blob's."""
    if len(page) != HEADER_SIZE or page[:8] != b"%08x" % zlib.crc32(page[8:]):
        return None
    try:
        found: dict[str, Any] = json.loads(page[8:])
        if (found.pop("version"), found.pop("block_size")) != (VERSION, BLOCK):
            return None
        header = MapHeader(**{**found, "owner": Owner(**found["owner"])})
    except (ValueError, KeyError, TypeError):
        return None
    if header.etag != etag or not is_data_name(header.data, etag) or header.size < 0:
        return None
    return header
