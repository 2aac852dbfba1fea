"""The names of huggingface_hub that it does not document, and what is done without each.

Its environment variables and the layout of its cache are documented, so all of these can be done without. No other
module of this package uses one; tests/loader/test_compat.py takes every one away and loads a model.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from yaie_async.core.compat import Names

_FILTER = "huggingface_hub.utils:filter_repo_objects"
_SYMLINKS = "huggingface_hub.file_download:are_symlinks_supported"
_CONSTANTS = "huggingface_hub.constants:"

_ENVIRONMENT: dict[str, Callable[[], Any]] = {
    "ENDPOINT": lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
    "HF_HUB_CACHE": lambda: os.path.expandvars(os.environ.get("HF_HUB_CACHE", os.path.join(_home(), "hub"))),
    "HF_HUB_ETAG_TIMEOUT": lambda: int(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 10),
    "HF_HUB_DOWNLOAD_TIMEOUT": lambda: int(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or 10),
    "HF_HUB_USER_AGENT_ORIGIN": lambda: os.environ.get("HF_HUB_USER_AGENT_ORIGIN"),
    "HF_HUB_DISABLE_TELEMETRY": lambda: _is_set("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"),
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": lambda: _is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"),
    "HF_HUB_DISABLE_SYMLINKS": lambda: _is_set("HF_HUB_DISABLE_SYMLINKS"),
    "HF_HUB_DISABLE_SHARED_BLOBS": lambda: _is_set("HF_HUB_DISABLE_SHARED_BLOBS"),
}
"""The constants that are used, and how each is read from the documented variables. `huggingface_hub` reads them once,
when it is imported, and an application may set them."""

NAMES = Names(
    {
        _FILTER: "files are chosen by the patterns of fnmatch",
        _SYMLINKS: "each folder of the cache is tried with a symlink",
        **{f"{_CONSTANTS}{name}": "the environment is read instead" for name in _ENVIRONMENT},
    }
)


def constant(name: str) -> Any:
    """Return a constant of huggingface_hub, one of `_ENVIRONMENT`."""
    value = NAMES.find(f"{_CONSTANTS}{name}")
    return _ENVIRONMENT[name]() if value is None else value


def matching(paths: Iterable[str], include: list[str] | None, exclude: list[str]) -> list[str]:
    """Return the paths that match one of `include` (None for all) and none of `exclude`."""
    official = NAMES.find(_FILTER)
    if official is not None:
        return list(official(paths, allow_patterns=include, ignore_patterns=exclude))

    def matches(path: str, patterns: list[str]) -> bool:
        return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)

    return [path for path in paths if (include is None or matches(path, include)) and not matches(path, exclude)]


def are_symlinks_supported(folder: Path) -> bool:
    """Return whether links can be made below a folder of the cache, and HF_HUB_DISABLE_SYMLINKS is not set. Blocks."""
    if constant("HF_HUB_DISABLE_SYMLINKS"):
        return False
    official = NAMES.find(_SYMLINKS)
    if official is not None:
        return bool(official(folder))
    with suppress(OSError), tempfile.TemporaryDirectory(dir=folder) as scratch:
        os.symlink("target", os.path.join(scratch, "link"))
        return True
    return False


def _home() -> str:
    cache = os.environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    return os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))


def _is_set(*variables: str) -> bool:
    return any(os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"} for variable in variables)
