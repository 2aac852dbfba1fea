"""The class, config and generation config of a snapshot whose config.json is not linked yet."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def view_of(snapshot: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """A directory outside the cache with the small files of a snapshot, and config.json.

    config.json is linked into the snapshot after everything else, so that a kill never leaves one that looks whole;
    transformers reads it from a directory. This one has the snapshot's name: transformers names the modules of
    remote code after it.
    """
    with tempfile.TemporaryDirectory(prefix="yaie-async-") as parent:
        view = Path(parent, snapshot.name)
        view.mkdir()
        for entry in snapshot.iterdir():
            if entry.suffix != ".safetensors" and entry.name != "config.json":
                (view / entry.name).symlink_to(entry)
        (view / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield view


def model_class(arguments: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """What `AutoModelForCausalLM.from_pretrained(**arguments)` calls: a class, its config, and the other arguments.

    It mirrors that method, which can't be given a state dict together with a directory. The class comes from
    `from_config` on the meta device, which makes no tensors and also runs remote code where that was consented to.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    passed = {**arguments, "_from_auto": True}
    trust, dtype = passed["trust_remote_code"], passed.pop("dtype")
    concrete = {} if dtype == "auto" else {"dtype": dtype}
    config, rest = AutoConfig.from_pretrained(**passed, **concrete, return_unused_kwargs=True)
    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust)
    found = type(skeleton)
    text_config = config.sub_configs.get("text_config")
    if text_config is not None and found.config_class == text_config:
        config = config.get_text_config()
    return found, config, {**rest, "dtype": dtype, "trust_remote_code": trust}


def add_generation(model: Any, view: Path, *, trust_remote_code: bool) -> None:
    """Give the model the generation config and the `custom_generate` of its directory, as `from_pretrained` would."""
    if not model.can_generate():
        return
    model.adjust_generation_fn(
        generation_config=None,
        from_auto_class=True,
        from_pipeline=None,
        pretrained_model_name_or_path=os.fspath(view),
        cache_dir=None,
        force_download=False,
        proxies=None,
        local_files_only=True,
        token=None,
        revision=None,
        subfolder="",
        trust_remote_code=trust_remote_code,
    )
