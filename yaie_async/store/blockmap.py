"""The map beside a partial: its header, and which bytes of the data file are written. Plain data.

A map is a 4 KiB header (a checksum, then JSON), one byte per block, and slots of 16 bytes. The byte is 0 until the
block is written. Then it is a value derived from the data file's name and the block's number, with the top bit set
once `fdatasync` has returned for the block. A plain 1 would let any stray byte pass for a written block. Here a map
with an unexpected byte is damaged as a whole, and the map of one file is never valid for another. A stray byte still
has the right value once in 127 cases; the digest of the whole file decides.

A slot is a position in the data file and a check value: its block is written up to there. Each connection has one,
which it rewrites as it goes on within a block. A slot whose check is wrong, or whose block is written, counts as free.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

BLOCK: Final = 4 << 20
HEADER_SIZE: Final = 4096  # one page: one `pwrite` rewrites it, and a kill can't interrupt that half-way
VERSION: Final = 2  # 1 had no slots; its maps count as damaged
SLOT: Final = 16
MOST_SLOTS: Final = 4096
LARGEST_MAP: Final = HEADER_SIZE + (1 << 22) + MOST_SLOTS * SLOT  # that of a blob of 16 TiB; a longer one is damaged

# The state of a block.
MISSING: Final = 0
WRITTEN: Final = 1  # in the page cache: survives a kill of the process
SYNCED: Final = 2  # on the disk: survives a power loss

# How the names of a partial's two files end.
DATA: Final = ".incomplete"
MAP: Final = ".map.incomplete"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, described so that another process can check whether it still runs."""

    host: str
    boot: str  # the kernel's id of this boot; "" where the system has none
    pid_namespace: str  # that of `pid`; "" where the system has none
    pid: int
    started: int  # in ticks since boot, because process ids are reused


@dataclass(frozen=True, slots=True)
class MapHeader:
    etag: str  # the blob's name
    size: int  # of the blob, in bytes
    data: str  # name of the data file, in the same directory
    owner: Owner  # the process that writes the partial
    released: bool = False  # whether the owner has closed the partial for good

    @property
    def blocks(self) -> int:
        return block_count(self.size)

    def recorded_bytes(self, state: bytes | bytearray) -> int:
        """Bytes in the blocks that are not MISSING."""
        recorded = (len(state) - state.count(MISSING)) * BLOCK
        padding = len(state) * BLOCK - self.size
        return recorded - padding if state and state[-1] else recorded

    def marks(self) -> tuple[bytes, bytes, bytes]:
        """The byte of each block for each state: MISSING, WRITTEN and SYNCED are the indexes."""
        written = bytes(1 + byte % 127 for byte in hashlib.shake_128(self.data.encode()).digest(self.blocks))
        return bytes(self.blocks), written, bytes(byte | 0x80 for byte in written)

    def encode(self) -> bytes:
        fields = {"version": VERSION, "block_size": BLOCK, **asdict(self)}
        text = json.dumps(fields, ensure_ascii=False).encode()
        body = text.ljust(HEADER_SIZE - 9) + b"\n"
        if len(body) != HEADER_SIZE - 8:
            raise ValueError(f"The names of a partial are longer than its header: {len(text)} bytes.")
        return b"%08x" % zlib.crc32(body) + body

    def encode_blocks(self, state: bytes | bytearray) -> bytes:
        """The bytes after the header."""
        by_state = self.marks()
        return bytes(by_state[value][i] for i, value in enumerate(state))

    def encode_slot(self, position: int) -> bytes:
        check = hashlib.blake2b(f"{self.data} {position}".encode(), digest_size=SLOT // 2)
        return position.to_bytes(SLOT // 2, "little") + check.digest()

    def decode_slots(self, raw: bytes, state: bytes | bytearray) -> dict[int, Slot]:
        """The slots of blocks that are begun and not written, by block; `raw` is what follows the blocks' bytes."""
        found: dict[int, Slot] = {}
        for number in range(min(len(raw) // SLOT, MOST_SLOTS)):
            slot = raw[number * SLOT : (number + 1) * SLOT]
            position = int.from_bytes(slot[: SLOT // 2], "little")
            block, length = divmod(position, BLOCK)
            if length and position < self.size and not state[block] and slot == self.encode_slot(position):
                found[block] = max(found.get(block, Slot(0, 0)), Slot(position, number))
        return found


class Slot(NamedTuple):
    position: int  # in the data file: the block is written up to here
    number: int  # which slot of the map says so


def block_count(size: int) -> int:
    return -(-size // BLOCK)


def file_name(etag: str, unique: str, suffix: str) -> str:
    """The name of a DATA or MAP file; `unique` is 8 hex digits."""
    return f"{etag}.yaie-{unique}{suffix}"


def is_name_of(name: str, etag: str, suffix: str) -> bool:
    """Whether `name` is that of a DATA or MAP file of this blob. No other file is ever opened or removed."""
    return re.fullmatch(re.escape(etag) + r"\.yaie-[0-9a-f]{8}" + re.escape(suffix), name) is not None


def decode(raw: bytes, etag: str, size: int | None = None) -> tuple[MapHeader, bytearray] | None:
    """The header and the state of each block; None for a map that is damaged, of another version or another blob's.

    The blocks are not looked at in a map of another size than `size`, where that is given.
    """
    page, blocks = raw[:HEADER_SIZE], raw[HEADER_SIZE:]
    if len(page) != HEADER_SIZE or page[:8] != b"%08x" % zlib.crc32(page[8:]):
        return None
    try:
        fields: dict[str, Any] = json.loads(page[8:])
        if (fields.pop("version"), fields.pop("block_size")) != (VERSION, BLOCK):
            return None
        header = MapHeader(**{**fields, "owner": Owner(**fields["owner"])})
        json.dumps(fields, ensure_ascii=False).encode()  # UnicodeEncodeError: a lone surrogate
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    # Anybody can write a map with a right checksum: `size` and `pid` may be texts, and `data` a number.
    if [*map(type, asdict(header).values())] != [str, int, str, dict, bool]:
        return None
    if [*map(type, asdict(header.owner).values())] != [str, str, str, int, int]:
        return None
    if header.etag != etag or not is_name_of(header.data, etag, DATA) or header.size < 0:
        return None
    if size not in (None, header.size):
        return header, bytearray()
    if len(blocks) < header.blocks or (len(blocks) - header.blocks) % SLOT:
        return None
    state = bytearray()
    for byte, *valid in zip(blocks[: header.blocks], *header.marks(), strict=True):
        if byte not in valid:
            return None
        state.append(valid.index(byte))
    return header, state
