"""What is to be built: plain data that crosses from the loader into the builder thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaie_async.core.manifest import Manifest


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One model or tokenizer to build from files that are on this machine."""

    manifest: Manifest
    cache_dir: str | None = None  # the HF cache that holds the snapshot, and code of other repositories
    dtype: Any = "float16"  # a dtype name, a `torch.dtype`, or "auto" for what the checkpoint says
    device_map: Any = "auto"  # what `from_pretrained` takes; "auto" lets accelerate decide
    trust_remote_code: bool = False  # consent to run the `.py` files of the folder
    # Passed on to `from_pretrained` as they are.
    model_kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def source(self) -> str:
        """The Hub repo id, or the path of the directory."""
        return self.manifest.model

    @property
    def commit(self) -> str | None:
        return self.manifest.commit

    @property
    def folder(self) -> Path:
        return self.manifest.folder

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed config.json."""
        return self.manifest.config or {}

    @property
    def architecture(self) -> str | None:
        """The first architecture that the config names, else its model type, else None."""
        named = self.config.get("architectures")
        first = named[0] if isinstance(named, list) and named else self.config.get("model_type")
        return first if isinstance(first, str) else None

    @property
    def devices(self) -> list[Any]:
        """The devices of `device_map`, or its one word."""
        return list(self.device_map.values()) if isinstance(self.device_map, Mapping) else [self.device_map]

    @property
    def auto_map(self) -> Mapping[str, Any]:
        """The classes that the model's own code has, by auto class; empty where it has none."""
        auto_map = self.config.get("auto_map")
        return auto_map if isinstance(auto_map, dict) else {}
