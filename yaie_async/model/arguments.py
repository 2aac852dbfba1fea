"""Which keywords may be passed on to `from_pretrained`. Imports nothing heavy, so that it can be checked first."""

import os
from collections.abc import Mapping
from typing import Any

_OWN = "it is an argument of ModelLoader (or of its Hub) and is passed on from there"
_FETCHED = "the files are fetched by this package, never by from_pretrained"
_QUANTISED = "transformers takes quantization_config=BitsAndBytesConfig({}=True) in its place"

_REFUSED = {
    **dict.fromkeys(("revision", "dtype", "torch_dtype", "device_map", "trust_remote_code"), _OWN),
    **dict.fromkeys(("cache_dir", "token", "local_files_only"), _OWN),
    **dict.fromkeys(("force_download", "resume_download", "proxies", "mirror", "tqdm_class"), _FETCHED),
    **{name: _QUANTISED.format(name) for name in ("load_in_8bit", "load_in_4bit")},
    "output_loading_info": "it is used internally to check what was loaded",
    "adapter_kwargs": "it says how from_pretrained fetches an adapter; add the adapter with peft once it is loaded",
    "use_flash_attention_2": 'transformers takes attn_implementation="flash_attention_2" in its place',
    "device": "pass device_map=, which takes a device too",
    "use_auth_token": "it was renamed: pass token= to ModelLoader",
    "pretrained_model_name_or_path": "the model is the first argument of ModelLoader",
    "weights_only": "pickles are always read with weights_only=True",
    "ignore_mismatched_sizes": "it would fill the tensors that don't fit with random numbers",
    "state_dict": "the weights come from the checkpoint; use transformers directly to load others",
    "subfolder": "models in a subfolder are not supported; load that folder as a local directory",
    "code_revision": "remote code is run at the same commit as its weights",
    "gguf_file": "GGUF files are not supported; load the original checkpoint",
    "from_tf": "TensorFlow weights are not supported; load the safetensors or PyTorch ones",
    "from_flax": "Flax weights are not supported; load the safetensors or PyTorch ones",
}


def check_model_kwargs(model_kwargs: Mapping[str, Any]) -> None:
    """Refuse keywords that would break what this package promises.

    Raises:
        InvalidArgumentError: names the keyword and says what to do instead.
    """
    for name, value in model_kwargs.items():
        reason = _REFUSED.get(name) if value is not None else None  # the default of all of them
        if reason is None and name.startswith("_"):
            reason = "names with a leading underscore are internal to transformers"
        if reason is None and name == "config" and isinstance(value, str | os.PathLike):
            reason = "only a config object is accepted, because a name would be looked up on the network"
        if reason is not None:
            # Not at the top: the errors inherit from huggingface_hub's, whose import takes a while.
            from yaie_async.core.errors import InvalidArgumentError

            raise InvalidArgumentError(f"{name}= can't be passed on to from_pretrained: {reason}.")
