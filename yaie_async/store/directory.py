"""A model in a directory: its files, and the manifest of a load from it."""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from yaie_async.core.manifest import Listing, Manifest, Need, RepoFile, draft
from yaie_async.store.diskio import read_regular
from yaie_async.store.os_errors import cache_errors


def directory_manifest(path: Path, need: Need) -> Manifest:
    """The manifest of a load from a directory; raises what making or reading one raises. Blocks."""
    manifest = draft(Listing(None, files_below(path)), need, model=str(path), folder=path)
    return replace(manifest.sharpened(lambda file: read_bytes(path / file.path)), complete=True)


def read_bytes(path: Path) -> bytes:
    with cache_errors(path, reading=True):
        return read_regular(path)


def read_object(path: Path) -> Mapping[str, Any]:
    """The JSON object in a small file; empty where it can't be read. Blocks."""
    with suppress(OSError, ValueError, RecursionError):
        parsed = json.loads(read_regular(path))
        return parsed if isinstance(parsed, dict) else {}
    return {}


def files_below(top: Path) -> dict[str, RepoFile]:
    """All files below a folder, by path. The etag of a link is its target's name, which in a cache is the blob's."""
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            full = Path(folder, name)
            with suppress(OSError):  # a dangling link: its blob was removed
                status = full.stat()
                etag = os.readlink(full).rpartition("/")[2] if full.is_symlink() else None
                if stat.S_ISREG(status.st_mode):  # opening a FIFO or a device would block for ever
                    path = full.relative_to(top).as_posix()
                    found[path] = RepoFile(path, status.st_size, etag)
    return found
