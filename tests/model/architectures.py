"""Random checkpoints of the architectures that a streaming build is compared with stock in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import models

SIZES: dict[str, Any] = {
    "vocab_size": models.VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_FULL = {**SIZES, "num_key_value_heads": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DEEPSEEK = {
    **_FULL, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip
_OPT = {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16}

# name: (class, config, dtype of the checkpoint)
_SAVED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bloom": ("Bloom", {**SIZES, "n_layer": 2, "n_head": 2}, "float16"),
    "cohere": ("Cohere", SIZES, "float16"),
    "deepseek-v3": ("DeepseekV3", _DEEPSEEK, "bfloat16"),
    "falcon": ("Falcon", SIZES, "bfloat16"),
    "gemma2": ("Gemma2", {**SIZES, "head_dim": 8}, "bfloat16"),
    "gemma3": ("Gemma3", {**SIZES, "head_dim": 8}, "bfloat16"),
    "gpt-neox": ("GPTNeoX", SIZES, "float16"),
    "gpt-oss": ("GptOss", {**SIZES, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, "bfloat16"),
    "gptj": ("GPTJ", {**SIZES, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}, "float32"),
    "mamba": ("Mamba", {**SIZES, "state_size": 4}, "float32"),
    "mistral": ("Mistral", SIZES, "bfloat16"),
    "olmo2": ("Olmo2", SIZES, "float32"),
    "opt": ("OPT", _OPT, "float16"),
    "phi3": ("Phi3", SIZES, "bfloat16"),
    "qwen2-moe": ("Qwen2Moe", {**SIZES, **_EXPERTS, "shared_expert_intermediate_size": 16}, "bfloat16"),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 8}, "bfloat16"),
    "qwen3-moe": ("Qwen3Moe", {**SIZES, **_EXPERTS, "head_dim": 8}, "float16"),
    "stablelm": ("StableLm", _FULL, "float16"),
    "starcoder2": ("Starcoder2", SIZES, "float32"),
}

_PICKLED = {"dialogpt", "sharded-bin", "codegen", "gpt2-like-repo"}


def _saved(directory: Path, *, name: str) -> Path:
    import transformers

    class_name, sizes, dtype = _SAVED[name]
    config = getattr(transformers, f"{class_name}TextConfig" if name == "gemma3" else f"{class_name}Config")(**sizes)
    models.bpe_tokenizer(directory)
    return models._save(getattr(transformers, f"{class_name}ForCausalLM"), config, directory, dtype)


ARCHITECTURES: dict[str, Callable[[Path], Path]] = {
    **{name: factory for name, factory in models.FACTORIES.items() if name not in _PICKLED},
    **{name: partial(_saved, name=name) for name in _SAVED},
}
"""Every kind of safetensors checkpoint by name."""
