"""Writes the demo's checkpoint. Run as a process of its own: the process that is measured has not imported torch.

python -m yaie_async.demo.making smollm2 FILE.gguf DIRECTORY
python -m yaie_async.demo.making random DIRECTORY
"""

import json
import sys
from pathlib import Path
from typing import Any


def from_gguf(file: Path, directory: Path) -> None:
    """Unpack a GGUF file into an ordinary fp16 checkpoint with its tokenizer."""
    step("Importing torch and transformers")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"gguf_file": file.name}
    step("Converting the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    step("Converting the tensors")
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float16, quantization_config=GgufConfig(dequantize=True), **options
    )
    step("Writing the checkpoint")
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def random_llama(directory: Path) -> None:
    """A Llama of 26 million random parameters (fp16) with a tokenizer of single bytes."""
    step("Importing torch and transformers")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    directory.mkdir(parents=True, exist_ok=True)
    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    step("Making random weights")
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(directory)  # type: ignore[arg-type]


def step(name: str) -> None:
    """Report a step on stderr, in the format that `maker.py` reads."""
    sys.stderr.write(f"step: {name}\n")


def main(arguments: list[str]) -> None:
    match arguments:
        case ["smollm2", file, directory]:
            from_gguf(Path(file), Path(directory))
        case ["random", directory]:
            random_llama(Path(directory))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
