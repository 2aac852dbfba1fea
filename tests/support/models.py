"""Tiny random checkpoints in the layouts of real ones; each takes a fraction of a second to write.

Every factory fills the given directory and returns it. Weights come from a fixed seed, so two runs write the same
bytes.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VOCAB = 300
_SIZES: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1}


# -- tokenizers ---------------------------------------------------------------------------------------------


def bpe_tokenizer(directory: Path, *, eos: bool = True, pad: bool = False) -> Path:
    """Write a byte-level BPE tokenizer.json, with an eos and a pad token only if `eos` and `pad` are given."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(vocab=_byte_vocab(), merges=[("h", "e"), ("l", "l")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    if eos:
        config |= {"bos_token": "<s>", "eos_token": "</s>"}
    if pad:
        config["pad_token"] = "<pad>"
    _write_json(directory / "tokenizer_config.json", config)
    return directory


def gpt2_tokenizer(directory: Path) -> Path:
    """Write a GPT-2 tokenizer in the format of the oldest repositories: vocab.json and merges.txt."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab = _byte_vocab() | {"<|endoftext|>": VOCAB - 1}
    _write_json(directory / "vocab.json", vocab)
    (directory / "merges.txt").write_text("#version: 0.2\nh e\nl l\n", encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", {"model_max_length": 64})
    return directory


def _byte_vocab() -> dict[str, int]:
    from tokenizers import pre_tokenizers

    names = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]
    return {name: number for number, name in enumerate(names)}


# -- models -------------------------------------------------------------------------------------------------


def llama(
    directory: Path, *, dtype: str = "float16", tied: bool = False, sharded: bool = False, hidden: int = 16
) -> Path:
    """A Llama in safetensors, in one file or in shards of a few tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_decoder_sizes(hidden), tie_word_embeddings=tied)
    bpe_tokenizer(directory)
    return _save(LlamaForCausalLM, config, directory, dtype, sharded=sharded)


def qwen2(directory: Path) -> Path:
    """A Qwen2, with biases on q, k, v and tied embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    bpe_tokenizer(directory, pad=True)
    config = Qwen2Config(**_decoder_sizes(), tie_word_embeddings=True)
    return _save(Qwen2ForCausalLM, config, directory, "bfloat16")


def mixtral(directory: Path) -> Path:
    """A mixture of experts, with one stored tensor per expert as on the Hub."""
    from transformers import MixtralConfig, MixtralForCausalLM

    bpe_tokenizer(directory)
    config = MixtralConfig(**_decoder_sizes(), num_local_experts=4, num_experts_per_tok=2)
    return _save(MixtralForCausalLM, config, directory, "bfloat16", sharded=True)


def codegen(directory: Path) -> Path:
    """A CodeGen with `pytorch_model.bin` only, like Salesforce/codegen-350M-mono."""
    from transformers import CodeGenConfig, CodeGenForCausalLM

    gpt2_tokenizer(directory)
    settings = _SIZES | {"tokenizer_class": "GPT2Tokenizer"}
    config = CodeGenConfig(
        **settings,
        n_embd=32,
        n_head=4,
        n_layer=2,
        n_positions=64,
        n_ctx=64,
        rotary_dim=4,
        tie_word_embeddings=False,
    )
    return _save_pickled(CodeGenForCausalLM, config, directory, "float16")


def gpt2(directory: Path, *, hub_keys: bool = False, dtype: str = "float32") -> Path:
    """A GPT-2; with `hub_keys` without the prefix `transformer.` and with causal masks, like the Hub's gpt2."""
    from safetensors.torch import save_file

    model = _gpt2_model(dtype)
    gpt2_tokenizer(directory)
    if not hub_keys:
        model.save_pretrained(directory)
        return directory
    _write_config(model, directory, dtype)
    save_file(_gpt2_hub_state(model), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def dialogpt(directory: Path, *, dtype: str = "float32") -> Path:
    """A GPT-2 with `pytorch_model.bin` only and a second copy of its tied head, like microsoft/DialoGPT-*."""
    gpt2_tokenizer(directory)
    return _save_pickled(type(_gpt2_model(dtype)), _gpt2_config(), directory, dtype)


def sharded_bin(directory: Path) -> Path:
    """A Llama in `pytorch_model-0000x-of-00002.bin` with an index."""
    from transformers import LlamaConfig, LlamaForCausalLM

    bpe_tokenizer(directory)
    return _save_pickled(LlamaForCausalLM, LlamaConfig(**_decoder_sizes()), directory, "float16", shards=2)


def gpt2_like_repo(directory: Path) -> Path:
    """A repository in the layout of the Hub's gpt2: one model in seven formats, of which a load needs one."""
    import torch

    gpt2(directory, hub_keys=True)
    torch.save(_gpt2_hub_state(_gpt2_model("float32")), directory / "pytorch_model.bin")
    for name in ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "64.tflite", "64-fp16.tflite"):
        (directory / name).write_bytes(name.encode() * 1000)
    for name in (
        "decoder_model.onnx",
        "decoder_with_past_model.onnx",
        "config.json",
        "generation_config.json",
    ):
        (directory / "onnx").mkdir(exist_ok=True)
        (directory / "onnx" / name).write_bytes(b"{}" if name.endswith("json") else name.encode() * 1000)
    (directory / "README.md").write_text("# tiny\n", encoding="utf-8")
    (directory / ".gitattributes").write_text("*.bin filter=lfs\n", encoding="utf-8")
    return directory


def remote_code(directory: Path) -> Path:
    """A model whose classes are in the repository (`auto_map`); their import writes a file `executed` to `$TINY_MARK`."""
    import torch
    from safetensors.torch import save_file

    bpe_tokenizer(directory)
    _write_json(
        directory / "config.json",
        {
            "architectures": ["TinyForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_tiny.TinyConfig",
                "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
            },
            "model_type": "tiny_remote",
            "dtype": "float32",
            "hidden_size": 16,
            **_SIZES,
        },
    )
    (directory / "configuration_tiny.py").write_text(_TINY_CONFIG, encoding="utf-8")
    (directory / "modeling_tiny.py").write_text(_TINY_MODEL, encoding="utf-8")
    generator = torch.Generator().manual_seed(7)
    state = {
        "embed.weight": torch.randn(VOCAB, 16, generator=generator),
        "head.weight": torch.randn(VOCAB, 16, generator=generator),
    }
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def masked(directory: Path, *, kind: str = "Bert") -> Path:
    """A masked language model, which transformers loads as a causal one too."""
    import transformers

    sizes = {**_decoder_sizes(), "pad_token_id": 2}
    del sizes["num_key_value_heads"]
    bpe_tokenizer(directory)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return _save(getattr(transformers, f"{kind}ForMaskedLM"), config, directory, "float32")


def t5(directory: Path) -> Path:
    """An encoder-decoder, which is not a causal language model."""
    from transformers import T5Config, T5ForConditionalGeneration

    bpe_tokenizer(directory)
    config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return _save(T5ForConditionalGeneration, config, directory, "float32")


def gpt2_classifier(directory: Path) -> Path:
    """A sequence classification checkpoint, which transformers loads with a random head and a warning."""
    from transformers import GPT2ForSequenceClassification

    gpt2_tokenizer(directory)
    return _save(GPT2ForSequenceClassification, _gpt2_config(), directory, "float32")


FACTORIES: dict[str, Callable[[Path], Path]] = {
    "llama": llama,
    "llama-sharded": lambda directory: llama(directory, sharded=True),
    "llama-bf16": lambda directory: llama(directory, dtype="bfloat16"),
    "llama-fp32": lambda directory: llama(directory, dtype="float32"),
    "llama-tied": lambda directory: llama(directory, tied=True),
    "qwen2": qwen2,
    "gpt2": gpt2,
    "gpt2-hub-keys": lambda directory: gpt2(directory, hub_keys=True),
    "gpt2-like-repo": gpt2_like_repo,
    "dialogpt": dialogpt,
    "sharded-bin": sharded_bin,
    "codegen": codegen,
    "mixtral": mixtral,
    "remote-code": remote_code,
}
"""Every kind of checkpoint that loads as a causal language model, by name."""


# -- an HF cache by hand ------------------------------------------------------------------------------------


def add_to_cache(
    directory: Path, cache_dir: Path, repo_id: str, *, commit: str = COMMIT, ref: str | None = None
) -> Path:
    """Copy `directory` into an HF cache as a snapshot and return the snapshot. A ref is written only if named."""
    repo = cache_dir / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    (repo / "blobs").mkdir(parents=True, exist_ok=True)
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory)
        blob = repo / "blobs" / sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(name.parts) + 1), "blobs", blob.name))
    if ref is not None:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(commit, encoding="utf-8")
    return snapshot


def unique_repo_id(name: str) -> str:
    """Return an unused repo id: transformers caches remote code in this process by repo id."""
    return f"tests/{name}-{uuid.uuid4().hex[:8]}"


# -- writing checkpoints ------------------------------------------------------------------------------------


def _decoder_sizes(hidden: int = 16) -> dict[str, Any]:
    return {
        **_SIZES,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }


def _gpt2_config() -> Any:
    from transformers import GPT2Config

    ids: dict[str, Any] = {"bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1}
    return GPT2Config(vocab_size=VOCAB, n_embd=16, n_head=2, n_layer=2, n_positions=64, **ids)


def _gpt2_model(dtype: str) -> Any:
    from transformers import GPT2LMHeadModel

    return _random(GPT2LMHeadModel, _gpt2_config(), dtype)


def _gpt2_hub_state(model: Any) -> dict[str, Any]:
    import torch

    state = {k.removeprefix("transformer."): v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for layer in range(2):
        state[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64)
    return {name: tensor.clone() for name, tensor in state.items()}


def _random(model_class: Any, config: Any, dtype: str) -> Any:
    import torch

    # The global generator keeps its state, which other tests may use.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return model_class(config).to(getattr(torch, dtype))


def _save(model_class: Any, config: Any, directory: Path, dtype: str, *, sharded: bool = False) -> Path:
    _random(model_class, config, dtype).save_pretrained(directory, max_shard_size="8KB" if sharded else "1GB")
    return directory


def _save_pickled(model_class: Any, config: Any, directory: Path, dtype: str, *, shards: int = 1) -> Path:
    import torch

    model = _random(model_class, config, dtype)
    _write_config(model, directory, dtype)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return directory
    names = [f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" for n in range(shards)]
    weight_map = {key: names[n * shards // len(state)] for n, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key] for key in state if weight_map[key] == name}, directory / name)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(directory / "pytorch_model.bin.index.json", index)
    return directory


def _write_config(model: Any, directory: Path, dtype: str) -> None:
    config = model.config.to_diff_dict() | {"architectures": [type(model).__name__], "torch_dtype": dtype}
    config.pop("dtype", None)
    _write_json(directory / "config.json", config)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


_TINY_CONFIG = """\
import os
import pathlib

from transformers import PreTrainedConfig

if "TINY_MARK" in os.environ:
    pathlib.Path(os.environ["TINY_MARK"], "executed").touch()


class TinyConfig(PreTrainedConfig):
    model_type = "tiny_remote"

    def __init__(self, vocab_size=300, hidden_size=16, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs)
"""

_TINY_MODEL = """\
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_tiny import TinyConfig


class TinyForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, **kwargs):
        return CausalLMOutput(logits=self.head(self.embed(input_ids)))
"""
