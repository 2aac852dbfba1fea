"""Builds a large BPE tokenizer as `Tokenizer.from_file` would, with shorter holds of the GIL."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from yaie_async.build.pieces import read_pieces

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
    from tokenizers import AddedToken, Tokenizer, models

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
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    tokenizer = Tokenizer.from_str(json.dumps({**parsed.rest, "added_tokens": [], "model": empty}))
    tokenizer.model = model
    for special, tokens in itertools.groupby(added, key=lambda token: token["special"]):
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(**{name: value for name, value in token.items() if name != "id"}) for token in tokens])
    if any(tokenizer.token_to_id(token["content"]) != token["id"] for token in added):
        raise ValueError("an added token has another number")
    return tokenizer
