"""Headers of safetensors files: what is read, and what is refused before a byte behind it is believed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from yaie_async.model.header import LARGEST, HeaderError, Stored, header_length, parse_header


def parse(file: bytes) -> dict[str, Stored]:
    length = header_length(file[:8], len(file))
    return dict(parse_header(file[8 : 8 + length], len(file)))


def file_of(header: Any, data: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def entry(dtype: Any = "F16", shape: Any = (2, 3), start: int = 0, stop: int = 12) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, stop]}


def test_what_the_library_writes() -> None:
    """Offsets, shapes and dtypes are those of the library, scalars and empty tensors included."""
    tensors = {
        "a": torch.arange(6, dtype=torch.float16).view(2, 3),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 4),
        "flag": torch.tensor([True]),
        "bf": torch.ones(3, dtype=torch.bfloat16),
    }
    file = save(tensors, metadata={"format": "pt"})
    found = parse(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        stored = found[name]
        assert stored.shape == tuple(tensor.shape)
        assert stored.item == tensor.element_size()
        assert file[stored.start : stored.stop] == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(), "b": entry(start=6, stop=18)}, 18),  # they overlap
        ({"a": entry(), "b": entry()}, 12),  # wholly
        ({"a": entry(), "b": entry(start=14, stop=26)}, 26),  # a gap
        ({"a": entry(start=2, stop=14)}, 14),  # at the start
        ({"a": entry()}, 14),  # at the end
        ({"a": entry()}, 10),  # out of range
        ({"a": entry(start=12, stop=0)}, 12),
        ({"a": entry(shape=(2, 4))}, 12),  # the shape lies
        ({"a": entry("F32")}, 12),  # the dtype lies
        ({"a": entry(shape=(-2, -3))}, 12),
        ({"a": entry(shape=(2.0, 3))}, 12),
        ({"a": entry(shape=(True, 6))}, 12),
        ({"a": entry(shape=(2**40, 2**40))}, 12),
        ({"a": entry(shape=None)}, 12),
        ({"a": entry("F17")}, 12),
        ({"a": entry([])}, 12),
        ({"a": {"dtype": "F16", "shape": [6], "data_offsets": [0, 12, 12]}}, 12),
        ({"a": {"dtype": "F16", "shape": [6]}}, 12),
        ({"a": 7}, 12),
        ([], 0),
        (b"{", 0),
        (b"", 0),
        (b"\xff\xfe{\0}\0", 0),  # UTF-16
        (b"[" * 100_000, 0),
        (b'{"a": {}, "a": {}}', 0),
    ],
)
def test_lies(header: Any, data: int) -> None:
    """What is wrong in itself is refused, and whatever is taken the library takes too."""
    file = file_of(header, data)
    with pytest.raises(HeaderError):
        parse(file)
    with pytest.raises((SafetensorError, RuntimeError, KeyError, OverflowError)):
        load(file)


def test_length() -> None:
    """A header longer than the file, or too long to be parsed beside an event loop, is not even read."""
    for first, size in ((b"", 0), (b"\1\0\0", 3), ((100).to_bytes(8, "little"), 107)):
        with pytest.raises(HeaderError, match="shorter than its header"):
            header_length(first, size)
    with pytest.raises(HeaderError, match="100,000,000 bytes is too long"):
        header_length((100_000_000).to_bytes(8, "little"), 10**12)
    assert header_length(LARGEST.to_bytes(8, "little"), 10**12) == LARGEST
