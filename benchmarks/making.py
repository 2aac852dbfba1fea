"""Writes a random Llama: `python -m benchmarks.making DIRECTORY MEGABYTES SHARDS TOKENS DTYPE`.

A process of its own: the one that prints the tables never imports torch.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def make_llama(directory: Path, megabytes: int, *, shards: int = 8, tokens: int = 0, dtype: str = "float16") -> None:
    """Let another process write it; `tokens` 0 is a tokenizer of single bytes."""
    directory.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.making", str(directory), str(megabytes), str(shards), str(tokens), dtype],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
    )


def add_tokenizer_copy(model: Path, copy: Path, tokens: int) -> None:
    """The same model under another name, with a tokenizer of so many tokens."""
    copy.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "tokenizer.json":
            os.link(file, copy / file.name)
    _tokenizer(copy, tokens)


def _tokenizer(directory: Path, tokens: int) -> None:
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "</s>", *letters]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges: list[str] = []
    # All pairs, then pairs with a third letter: a merge is only valid where both its parts are tokens.
    pairs = (a + b for a, b in itertools.product(letters, letters))
    for left, right in itertools.chain(itertools.product(letters, letters), itertools.product(pairs, letters)):
        if len(vocabulary) >= tokens:
            break
        vocabulary[left + right] = len(vocabulary)
        merges.append(f"{left} {right}")
    whole: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
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
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
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
    _tokenizer(directory, tokens)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5])
