"""Writes a random Llama: `python -m benchmarks.random_llama DIRECTORY MEGABYTES SHARDS TOKENS DTYPE`.

It runs in a process of its own, since the process that prints the tables must not import torch.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any


def make_llama(directory: Path, megabytes: int, *, shards: int = 8, tokens: int = 0, dtype: str = "float16") -> None:
    """Write the model in another process; with `tokens` 0 its tokenizer has single bytes only."""
    directory.mkdir(parents=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.random_llama", str(directory)),
            *(str(megabytes), str(shards), str(tokens), dtype),
        ],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
    )


def add_tokenizer_copy(model: Path, copy: Path, tokens: int) -> None:
    """Link the model to another name, with a tokenizer of `tokens` tokens."""
    copy.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "tokenizer.json":
            os.link(file, copy / file.name)
    write_tokenizer(copy, tokens)


def write_tokenizer(directory: Path, tokens: int, kind: str = "PreTrainedTokenizerFast") -> None:
    """Write a byte-level BPE tokenizer of the class `kind`, in the format of real repositories."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "</s>", *letters]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges: list[list[str]] = []
    # Each new token joins two earlier ones, up to 12 letters long, as in the tokenizers of real models.
    chance = random.Random(tokens)
    while len(vocabulary) < tokens:
        left, right = chance.choice(names), chance.choice(letters if chance.random() < 0.3 else names)
        if len(left + right) <= 12 and left + right not in vocabulary and "s>" not in left + right:
            vocabulary[left + right] = len(vocabulary)
            names.append(left + right)
            merges.append([left, right])
    special = [
        {"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for number, name in enumerate(("<s>", "</s>"))
    ]  # fmt: skip
    whole: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    (directory / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    described = {
        "tokenizer_class": kind,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "added_tokens_decoder": {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"} for token in special
        },
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")


def _main(directory: Path, megabytes: int, shards: int, tokens: int, dtype: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width = 1024 if megabytes >= 50 else 256
    stored = getattr(torch, dtype)
    layer = stored.itemsize * (4 * width**2 + 3 * width * 3 * width)  # bytes: attention and MLP
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=max(1, round(megabytes * 1e6 / layer)),
        num_attention_heads=8,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.set_default_dtype(stored)
    size = f"{max(1, -(-megabytes // shards))}MB"
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size=size)
    write_tokenizer(directory, tokens)


if __name__ == "__main__":
    megabytes, shards, tokens = map(int, sys.argv[2:5])
    _main(Path(sys.argv[1]), megabytes, shards, tokens, sys.argv[5])
