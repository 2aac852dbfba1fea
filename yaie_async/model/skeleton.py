"""The class and the config of a snapshot whose config.json is not linked yet."""

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yaie_async.model.compat import text_config_class


@contextmanager
def view_of(snapshot: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Make a directory outside the cache that has the small files of a snapshot and config.json.

    config.json is linked into the snapshot after all other files, so that a killed process never leaves a snapshot
    that looks complete; but transformers reads it from a directory. This one has the name of the snapshot, because
    transformers names the modules of remote code after it.
    """
    with tempfile.TemporaryDirectory(prefix="yaie-async-") as parent:
        view = Path(parent, snapshot.name)
        view.mkdir()
        for entry in snapshot.iterdir():
            if entry.suffix != ".safetensors" and entry.name != "config.json":
                (view / entry.name).symlink_to(entry)
        (view / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield view


def config_of(arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the config that `AutoModelForCausalLM.from_pretrained(**arguments)` makes, and what it leaves of them."""
    from transformers import AutoConfig

    passed = {name: value for name, value in arguments.items() if (name, value) != ("dtype", "auto")}
    config, rest = AutoConfig.from_pretrained(**passed, return_unused_kwargs=True)
    return config, rest


def model_class(arguments: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return what `AutoModelForCausalLM.from_pretrained(**arguments)` calls: a class, its config, other arguments.

    This mirrors that method, which takes no state dict together with a directory. The class comes from `from_config`
    on the meta device, which makes no tensors, and runs remote code too where the caller has consented.
    """
    import torch
    from transformers import AutoModelForCausalLM

    trust, dtype = arguments["trust_remote_code"], arguments["dtype"]
    config, rest = config_of(arguments)
    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust)
    found = type(skeleton)
    text_config = text_config_class(config)
    if text_config is not None and found.config_class == text_config:
        config = config.get_text_config()
    return found, config, {**rest, "dtype": dtype, "trust_remote_code": trust}
