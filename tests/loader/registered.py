"""A model that an application registers: loading it asks for all that transformers knows about models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.support import models


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig


def register() -> None:
    AutoConfig.register("mine", MineConfig)
    AutoModelForCausalLM.register(MineConfig, MineForCausalLM)


def write(directory: Path, **config: Any) -> Path:
    """Write the model, with a tokenizer whose class builds its backend of vocabulary and merges."""
    models.llama(directory)
    path = directory / "config.json"
    mine = {"model_type": "mine", "architectures": ["MineForCausalLM"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | mine | config))
    tokenizer = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {}, "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return directory
