"""The header of a safetensors file, read before the tensors behind it have arrived. Plain data.

What is accepted and refused follows the safetensors library. The bytes may be unverified, so every offset is checked
against the length of the file.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeGuard

from yaie_async.model.dtypes import BY_CODE, Dtype

# Bytes. json holds the GIL for 11 ms per MB; a shard of 3,000 tensors has a header of 0.4 MB. (safetensors: 100 MB.)
LARGEST = 2_000_000
# Bytes, of some 200,000 tensors: more than that is refused. safetensors would hold the GIL for 2.7 s for its 100 MB.
MONSTROUS = 16_000_000

_FIELDS = ("dtype", "shape", "data_offsets")
# safetensors counts in 64 bits, and parses 127 levels: two are the header and the entry of a tensor.
_LIMIT, _DEEPEST = 2**64, 125
# A text whose escapes name surrogates only in pairs.
_PAIRED = re.compile(r"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+")


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
        decoded = text.decode()
        if "\\u" in decoded and _PAIRED.fullmatch(decoded) is None:
            raise ValueError("a string has half of a surrogate pair")
        header = json.loads(
            decoded, object_pairs_hook=_Object, parse_int=_number, parse_float=_number, parse_constant=_number
        )
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"its header can't be parsed ({error})") from error
    if not isinstance(header, _Object):
        raise HeaderError("its header is not a JSON object")
    metadata = [value for name, value in header if name == "__metadata__"]
    if len(metadata) > 1 or not all(value is None or _are_strings(value) for value in metadata):
        raise HeaderError("its __metadata__ is not a map of strings")
    data = 8 + len(text)
    # Of two tensors with one name the last counts.
    tensors = {name: _stored(name, entry, data) for name, entry in header if name != "__metadata__"}
    position = data
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if (tensor.stop - tensor.start) * 8 != _elements(tensor.shape) * tensor.dtype.bits:
            raise HeaderError(f"{name} takes another number of bytes than its shape and dtype need")
        if tensor.start != position:
            raise HeaderError(f"the offsets of {name} overlap with another tensor or leave a gap")
        position = tensor.stop
    if position != size:
        raise HeaderError("its tensors end elsewhere than the file")
    return tensors


def read_header(file: BinaryIO, size: int) -> Mapping[str, Stored]:
    """The tensors of an open file of `size` bytes, by name; or a HeaderError or OSError."""
    return parse_header(file.read(header_length(file.read(8), size, largest=MONSTROUS)), size)


class _Object(list[tuple[str, Any]]):
    """The pairs of a JSON object: where it stands decides which names may occur twice."""


def _number(text: str) -> int | float:
    """A number as safetensors reads it: an integer has no sign and 64 bits, and a float is finite."""
    if text.isdecimal() and len(text) <= 20 and int(text) < _LIMIT:
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is out of range")
    return number


def _stored(name: str, entry: Any, data: int) -> Stored:
    # It may be an array of the three values too, and the dtype an object: {"F16": null}.
    pairs: Any = zip(_FIELDS, entry, strict=True) if type(entry) is list and len(entry) == 3 else entry
    known = [(field, value) for field, value in pairs if field in _FIELDS] if isinstance(pairs, _Object | zip) else []
    fields = dict(known)
    if len(known) != 3 or len(fields) != 3:
        raise HeaderError(f"{name} has not one dtype, shape and data_offsets")
    dtype, shape, offsets = (fields[field] for field in _FIELDS)
    if isinstance(dtype, _Object) and [value for _, value in dtype] == [None]:
        dtype = dtype[0][0]
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise HeaderError(f"{name} has no dtype, no shape or no offsets")
    if isinstance(entry, _Object) and _depth([value for field, value in entry if field not in _FIELDS]) > _DEEPEST:
        raise HeaderError(f"{name} is nested too deeply")
    if dtype not in BY_CODE:
        raise UnknownDtypeError(f"{name} has the dtype {dtype!r}, which is not read here")
    return Stored(BY_CODE[dtype], tuple(shape), data + offsets[0], data + offsets[1])


def _elements(shape: tuple[int, ...]) -> int:
    """Elements of a shape. A product beyond 64 bits is refused before it is multiplied again."""
    count = 1
    for dimension in shape:
        count *= dimension
        if count >= _LIMIT:
            raise HeaderError("a shape has more elements than can be counted")
    return count


def _depth(values: list[Any]) -> int:
    """How many levels of objects and arrays are inside of one another in `values`."""
    depth = 0
    while lists := [value for value in values if isinstance(value, list)]:
        depth += 1
        values = [x for one in lists for x in ((value for _, value in one) if isinstance(one, _Object) else one)]
    return depth


def _are_strings(metadata: Any) -> bool:
    return isinstance(metadata, _Object) and all(isinstance(value, str) for _, value in metadata)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return type(values) is list and all(type(value) is int for value in values)
