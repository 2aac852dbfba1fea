"""Reads a tokenizer.json in pieces, so that no call holds the GIL for long.

`json.loads` of a file with 128,000 tokens holds it for 40-110 ms. Here the two large parts, vocabulary and merges, are
read some hundred entries at a time, and passed on in a form that lets other threads run while the tokenizers library
copies them.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Entries that are read at once: under 0.1 ms, and fewer objects than start a garbage collection (700).
_PIECE = 200

_STRING = r'"(?:[^"\\]++|\\.)*+"'
_ENTRY = rf"\s*+{_STRING}\s*+:\s*+\d++\s*+"
_MERGE = rf"\s*+(?:{_STRING}|\[\s*+{_STRING}\s*+,\s*+{_STRING}\s*+\])\s*+"
# All entries but the last, which has no comma behind it.
_ENTRIES, _LAST_ENTRY = re.compile(rf"(?:{_ENTRY},){{1,{_PIECE}}}+"), re.compile(_ENTRY)
_MERGES, _LAST_MERGE = re.compile(rf"(?:{_MERGE},){{1,{_PIECE}}}+"), re.compile(_MERGE)
_SPACE = re.compile(r"\s*+")

_decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().raw_decode


class _Yielding:
    """A token's number that is read through a Python call, so that other threads can get the GIL."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number


class Merges(Sequence[tuple[str, str]]):
    """The merges of a BPE model, parsed in Python while they are iterated, so that other threads can get the GIL."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def __len__(self) -> int:
        return len(self._pieces) * _PIECE  # approximate; used as a size hint only

    def __getitem__(self, index: Any) -> Any:
        raise IndexError(index)  # the tokenizers library only iterates

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for piece in self._pieces:
            for merge in json.loads(f"[{piece}]"):
                if isinstance(merge, str) and merge.startswith("#version"):
                    raise ValueError("a line of merges.txt is not a merge")
                left, right = merge.split(" ") if isinstance(merge, str) else merge
                yield left, right


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """A parsed tokenizer.json."""

    rest: dict[str, Any]  # all of it but the two below, which are left out of its "model"
    vocab: dict[str, Any]  # token -> number; some of the numbers are not an `int`, but have `__index__`
    merges: Merges  # the pairs of tokens


def read_pieces(text: str) -> TokenizerJson:
    """Parse the text of a tokenizer.json; a ValueError says that it is none, or not that of a BPE model."""
    found: dict[str, Any] = {}

    def model(start: int) -> tuple[Any, int]:
        return _members(text, start, {"vocab": vocab, "merges": merges})

    def vocab(start: int) -> tuple[None, int]:
        entries: dict[str, Any] = {}
        pieces, end = _cut(text, start, "{}", _ENTRIES, _LAST_ENTRY)
        for piece in pieces:
            read = json.loads(f"{{{piece}}}")
            token, number = next(iter(read.items()))
            entries.update(read)
            entries[token] = _Yielding(number)
        found["vocab"] = entries
        return None, end

    def merges(start: int) -> tuple[None, int]:
        pieces, end = _cut(text, start, "[]", _MERGES, _LAST_MERGE)
        found["merges"] = Merges(pieces)
        return None, end

    rest, end = _members(text, _skip(text, 0), {"model": model})
    if _skip(text, end) != len(text) or found.keys() != {"vocab", "merges"}:
        raise ValueError("not the tokenizer.json of a BPE model")
    return TokenizerJson(rest, **found)


def _members(text: str, start: int, readers: dict[str, Callable[[int], tuple[Any, int]]]) -> tuple[dict[str, Any], int]:
    """Parse the object at `start`, with own readers for some of its keys; returns the object and its end."""
    members: dict[str, Any] = {}
    position = _expect(text, start, "{")
    while True:
        key, position = _decode(text, position)
        if not isinstance(key, str) or key in members:
            raise ValueError(f"{key!r} is not a key, or occurs twice")
        position = _expect(text, _skip(text, position), ":")
        reader = readers.get(key)
        members[key], position = reader(position) if reader else _decode(text, position)
        position = _skip(text, position)
        if text[position : position + 1] == "}":
            return members, position + 1
        position = _expect(text, position, ",")


def _cut(text: str, start: int, brackets: str, most: re.Pattern[str], last: re.Pattern[str]) -> tuple[list[str], int]:
    """Cut the text between brackets into pieces of some hundred entries; returns the pieces and the end."""
    position, pieces = _expect(text, start, brackets[0]), []
    while piece := most.match(text, position):
        pieces.append(piece[0][:-1])
        position = piece.end()
    if final := last.match(text, position):
        pieces.append(final[0])
        position = final.end()
    return pieces, _expect(text, position, brackets[1])


def _skip(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    assert space is not None
    return space.end()


def _expect(text: str, position: int, character: str) -> int:
    """Skip a character and the white space behind it."""
    if text[position : position + 1] != character:
        raise ValueError(f"{character} is not at {position}")
    return _skip(text, position + 1)
