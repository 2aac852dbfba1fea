"""The header of a safetensors file, read before the tensors behind it have arrived. Plain data.

What is accepted and refused follows the safetensors library. The bytes may be unverified, so every offset is checked
against the length of the file.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeGuard

from yaie_async.model.dtypes import BY_CODE, Dtype

# Bytes. json holds the GIL for 11 ms per MB; a shard of 3,000 tensors has a header of 0.4 MB. (safetensors: 100 MB.)
LARGEST = 2_000_000
# Bytes, of some 200,000 tensors: more than that is refused. safetensors would hold the GIL for 2.7 s for its 100 MB.
MONSTROUS = 16_000_000


class HeaderError(ValueError):
    """The header is damaged, contradicts its file, or has a dtype that is not supported."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file."""

    dtype: Dtype
    shape: tuple[int, ...]
    start: int  # offset of its first byte in the file
    stop: int  # offset behind its last byte

    @property
    def item(self) -> int:
        """Bytes of an element; of the dtypes under 8 bits, which are packed, 0."""
        return self.dtype.bits // 8


class UnknownDtypeError(HeaderError):
    """The header has a dtype that a newer safetensors may know."""


def header_length(first: bytes, size: int, *, largest: int = LARGEST) -> int:
    """Bytes of the header, by the first eight bytes of a file of `size` bytes; or a HeaderError."""
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        raise HeaderError("it is shorter than its header says")
    if length > largest:
        raise HeaderError(f"its header of {length:,} bytes is too long to be parsed beside an event loop")
    return length


def parse_header(text: bytes, size: int) -> Mapping[str, Stored]:
    """The tensors of a file of `size` bytes, by name.

    Raises:
        HeaderError: it is not JSON, or shapes, dtypes and offsets contradict each other, overlap or leave gaps.
    """
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header can't be parsed ({error})") from error
    if not isinstance(header, dict):
        raise HeaderError("its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    strings = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if metadata is not None and not strings:
        raise HeaderError("its __metadata__ is not a map of strings")
    data = 8 + len(text)
    tensors = {name: _stored(name, entry, data) for name, entry in header.items()}
    position = data
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != position:
            raise HeaderError(f"the offsets of {name} overlap with another tensor or leave a gap")
        position = tensor.stop
    if position != size:
        raise HeaderError("its tensors end elsewhere than the file")
    return tensors


def read_header(file: BinaryIO, size: int) -> Mapping[str, Stored]:
    """The tensors of an open file of `size` bytes, by name; or a HeaderError or OSError."""
    return parse_header(file.read(header_length(file.read(8), size, largest=MONSTROUS)), size)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HeaderError("a name occurs twice")
    return found


def _stored(name: str, entry: Any, data: int) -> Stored:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    known = BY_CODE.get(dtype) if isinstance(dtype, str) else None
    if known is None:
        raise UnknownDtypeError(f"{name} has the dtype {dtype!r}, which is not read here")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise HeaderError(f"{name} has no shape or no offsets")
    if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * known.bits:
        raise HeaderError(f"{name} takes another number of bytes than its shape {shape} of {dtype} needs")
    return Stored(known, tuple(shape), data + offsets[0], data + offsets[1])


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
