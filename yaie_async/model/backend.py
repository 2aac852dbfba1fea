"""Builds a large BPE tokenizer, or the parts for a class that builds one itself, with short holds of the GIL."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yaie_async.model.compat import parts_keywords
from yaie_async.model.pieces import Merges, read_pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The options that a BPE model may have beside its vocabulary and merges. With a dropout the same text has many
# encodings, which can't be compared.
_OPTIONS = {
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
}


def build_backend(text: str) -> Tokenizer:
    """Build the tokenizer of a tokenizer.json, given its text.

    Any exception means that it is no BPE model of a known form, or that `Tokenizer.from_file` might give another one.
    """
    from tokenizers import AddedToken, models

    parsed = read_pieces(text)
    options = {name: value for name, value in parsed.rest["model"].items() if value is not None}
    for name in ("vocab", "merges"):
        options.pop(name, None)
    if options.pop("type", None) != "BPE" or not options.keys() <= _OPTIONS:
        raise ValueError(f"The model is of an unknown form: {sorted(options)}.")
    model = models.BPE(vocab=parsed.vocab, merges=parsed.merges, **options)
    if any(getattr(model, name) != value for name, value in options.items()):
        raise ValueError("The model did not take one of its options.")
    added: list[dict[str, Any]] = parsed.rest["added_tokens"]
    tokenizer = _empty(parsed.rest)
    tokenizer.model = model
    for special, tokens in itertools.groupby(added, key=lambda token: token["special"]):
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(**{name: value for name, value in token.items() if name != "id"}) for token in tokens])
    if any(tokenizer.token_to_id(token["content"]) != token["id"] for token in added):
        raise ValueError("An added token has another number than in its file.")
    return tokenizer


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a tokenizer.json that transformers gives a class that builds its own backend."""

    vocab: dict[str, Any]  # token -> number; it yields the GIL while it is copied
    merges: Merges  # the pairs of tokens; they yield the GIL too
    keywords: Mapping[str, Any]  # the other arguments

    def plain(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Return vocabulary and merges in the types that transformers itself uses."""
        return {token: number.__index__() for token, number in self.vocab.items()}, list(self.merges)


def read_parts(text: str) -> Parts:
    """Read the text of a tokenizer.json as `TokenizersBackend.convert_to_native_format` does, or raise as above."""
    parsed = read_pieces(text)
    if parsed.rest["model"].get("type") != "BPE" or "Precompiled" in json.dumps(parsed.rest.get("normalizer")):
        raise ValueError("The model or its normalizer is of an unknown form.")
    return Parts(parsed.vocab, parsed.merges, parts_keywords(_empty(parsed.rest)))


def _empty(rest: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer without its tokens."""
    from tokenizers import Tokenizer

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({**rest, "added_tokens": [], "model": empty}))
