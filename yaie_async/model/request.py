"""What is to be built: plain data that crosses from the loader into the builder thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One model or tokenizer to build from files that are already on this machine.

    Attributes:
        source: a Hub repo id whose snapshot is in the cache, or the path of a directory.
        commit: the 40-hex commit of the snapshot; None for a directory.
        cache_dir: the HF cache that holds the snapshot; None for a directory.
        dtype: a dtype name, a `torch.dtype`, or "auto" for what the checkpoint says.
        device_map: what `from_pretrained` takes; "auto" lets accelerate decide.
        trust_remote_code: consent to run the `.py` files of the snapshot.
        allow_pickle: consent to read `pytorch_model.bin` (always with `weights_only`).
        model_kwargs: passed on to `from_pretrained` as they are.
    """

    source: str
    commit: str | None = None
    cache_dir: str | None = None
    dtype: Any = "float16"
    device_map: Any = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = True
    model_kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
