"""Load Hugging Face causal language models from async code without stalling the event loop.

    loader = ModelLoader("org/name")
    model = await loader.load_model()

Importing this package imports neither torch, transformers nor huggingface_hub. The names below are imported on
first use (PEP 562), and the heavy libraries in a thread at the first await.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yaie_async.core.errors import (
        CacheAccessError,
        ClosedHubError,
        DiskFullError,
        GatedModelError,
        HubUnavailableError,
        IncompatibleModelError,
        IntegrityError,
        InvalidArgumentError,
        LoaderError,
        ModelFileNotFoundError,
        ModelNotFoundError,
        OfflineError,
        OutOfMemoryError,
        PrefetchError,
        RevisionNotFoundError,
        StalledError,
        TokenizerError,
        TokenMissingError,
        UnsafeFileError,
        WarmupError,
    )
    from yaie_async.core.plan import Plan, PlannedFile
    from yaie_async.core.progress import Progress
    from yaie_async.loader.hub import Hub
    from yaie_async.loader.model_loader import ModelLoader
    from yaie_async.loader.warm import warm_imports

__version__ = "0.1.0"

_HOMES = {
    "Hub": "loader.hub",
    "ModelLoader": "loader.model_loader",
    "Plan": "core.plan",
    "PlannedFile": "core.plan",
    "Progress": "core.progress",
    "warm_imports": "loader.warm",
}

__all__ = [
    "CacheAccessError",
    "ClosedHubError",
    "DiskFullError",
    "GatedModelError",
    "Hub",
    "HubUnavailableError",
    "IncompatibleModelError",
    "IntegrityError",
    "InvalidArgumentError",
    "LoaderError",
    "ModelFileNotFoundError",
    "ModelLoader",
    "ModelNotFoundError",
    "OfflineError",
    "OutOfMemoryError",
    "Plan",
    "PlannedFile",
    "PrefetchError",
    "Progress",
    "RevisionNotFoundError",
    "StalledError",
    "TokenMissingError",
    "TokenizerError",
    "UnsafeFileError",
    "WarmupError",
    "warm_imports",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "core.errors")
    value = getattr(importlib.import_module(f"yaie_async.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
