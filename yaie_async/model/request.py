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
    """One model or tokenizer to build from files that are on this machine.

    Attributes:
        manifest: the files, and the folder that has them.
        cache_dir: the HF cache that holds the snapshot; None for a directory.
        dtype: a dtype name, a `torch.dtype`, or "auto" for what the checkpoint says.
        device_map: what `from_pretrained` takes; "auto" lets accelerate decide.
        trust_remote_code: consent to run the `.py` files of the folder.
        model_kwargs: passed on to `from_pretrained` as they are.
    """

    manifest: Manifest
    cache_dir: str | None = None
    dtype: Any = "float16"
    device_map: Any = "auto"
    trust_remote_code: bool = False
    model_kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def source(self) -> str:
        """The Hub repo id, or the path of the directory."""
        return self.manifest.model

    @property
    def commit(self) -> str | None:
        """The 40-hex commit of the snapshot; None for a directory."""
        return self.manifest.commit

    @property
    def folder(self) -> Path:
        """The snapshot's folder, or the directory."""
        return self.manifest.folder

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed config.json."""
        return self.manifest.config or {}
