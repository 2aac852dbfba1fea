"""Builds a large BPE tokenizer, or what a class of transformers builds one of, with shorter holds of the GIL."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from yaie_async.model.pieces import Merges, read_pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What a BPE model may say beside its vocabulary and merges. With a dropout the same text has many encodings, which
# can't be compared.
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

    Raises:
        Exception: of any kind, where it is not a BPE model of a form that is known, or there is any doubt whether
            `Tokenizer.from_file` would give the same.
    """
    from tokenizers import AddedToken, models

    parsed = read_pieces(text)
    options = {name: value for name, value in parsed.rest["model"].items() if value is not None}
    for name in ("vocab", "merges"):
        options.pop(name, None)
    if options.pop("type", None) != "BPE" or not options.keys() <= _OPTIONS:
        raise ValueError(f"a model that is not known: {sorted(options)}")
    model = models.BPE(vocab=parsed.vocab, merges=parsed.merges, **options)
    if any(getattr(model, name) != value for name, value in options.items()):
        raise ValueError("an option of the model was not taken over")
    added: list[dict[str, Any]] = parsed.rest["added_tokens"]
    tokenizer = _empty(parsed.rest)
    tokenizer.model = model
    for special, tokens in itertools.groupby(added, key=lambda token: token["special"]):
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(**{name: value for name, value in token.items() if name != "id"}) for token in tokens])
    if any(tokenizer.token_to_id(token["content"]) != token["id"] for token in added):
        raise ValueError("an added token has another number")
    return tokenizer


@dataclass(frozen=True, slots=True)
class Parts:
    """What transformers takes out of a tokenizer.json for a class that builds its backend itself.

    Attributes:
        vocab: token -> number, and merges: both yield the GIL while they are taken over.
        keywords: what else it is given.
    """

    vocab: dict[str, Any]
    merges: Merges
    keywords: Mapping[str, Any]

    def plain(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Vocabulary and merges of the types that transformers itself gives them."""
        return {token: number.__index__() for token, number in self.vocab.items()}, list(self.merges)


def read_parts(text: str) -> Parts:
    """Read the text of a tokenizer.json as `TokenizersBackend.convert_to_native_format` does.

    Raises:
        Exception: of any kind, where it is not a BPE model of a form that is known.
    """
    parsed = read_pieces(text)
    if parsed.rest["model"].get("type") != "BPE" or "Precompiled" in json.dumps(parsed.rest.get("normalizer")):
        raise ValueError("a model or a normalizer that is not known")
    empty = _empty(parsed.rest)
    keywords = {
        "post_processor": empty.post_processor,
        "tokenizer_padding": empty.padding,
        "tokenizer_truncation": empty.truncation,
        "_json_padding": empty.padding,
        "_json_truncation": empty.truncation,
    }
    return Parts(parsed.vocab, parsed.merges, {name: value for name, value in keywords.items() if value is not None})


def _empty(rest: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer without tokens: all else of it."""
    from tokenizers import Tokenizer

    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return Tokenizer.from_str(json.dumps({**rest, "added_tokens": [], "model": empty}))
