"""Keywords that would break what the package promises are refused before anything else happens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from yaie_async.core.errors import InvalidArgumentError
from yaie_async.model.arguments import check_model_kwargs


@pytest.mark.parametrize(
    "name",
    ["cache_dir", "revision", "token", "local_files_only", "force_download", "output_loading_info", "state_dict",
     "gguf_file", "subfolder", "from_tf", "from_flax", "weights_only", "proxies", "adapter_kwargs",
     "ignore_mismatched_sizes", "_fast_init", "use_flash_attention_2", "load_in_8bit", "load_in_4bit", "device"],
)  # fmt: skip
def test_refused(name: str) -> None:
    """Each is refused by name, with what to do instead."""
    with pytest.raises(InvalidArgumentError, match=rf"^{name}= can't be passed on to from_pretrained: \w+"):
        check_model_kwargs({"attn_implementation": "sdpa", name: True})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("load_in_8bit", r"quantization_config=BitsAndBytesConfig\(load_in_8bit=True\)"),
        ("load_in_4bit", r"quantization_config=BitsAndBytesConfig\(load_in_4bit=True\)"),
        ("adapter_kwargs", "add the adapter with peft"),
        ("use_flash_attention_2", 'attn_implementation="flash_attention_2"'),
        ("device", "device_map="),
    ],
)
def test_what_to_pass_instead(name: str, says: str) -> None:
    """Each error names what has its effect here."""
    with pytest.raises(InvalidArgumentError, match=says):
        check_model_kwargs({name: True})


def test_defaults() -> None:
    """None is the default of every keyword, and is accepted."""
    check_model_kwargs(dict.fromkeys(("state_dict", "gguf_file", "proxies", "adapter_kwargs", "code_revision")))


def test_config_by_name() -> None:
    """A config object is let through; a name would be looked up on the network and is refused."""
    check_model_kwargs({"config": SimpleNamespace(model_type="llama"), "max_memory": {0: "1GB"}})
    with pytest.raises(InvalidArgumentError, match="config object"):
        check_model_kwargs({"config": "gpt2"})
