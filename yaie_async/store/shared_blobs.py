"""Blobs that are links to a file outside of their repository's folder, as the official client shares them."""

import os
from contextlib import suppress
from pathlib import Path


def shared_file(blob: Path) -> Path | None:
    """The file that a blob is a link to; None for a blob of its own. Blocks."""
    return Path(os.path.realpath(blob)) if blob.is_symlink() else None


def users_of(root: Path, shared: Path) -> list[Path]:
    """All blobs of the cache that are links to `shared`. Blocks."""
    found = []
    for blob in sorted(root.glob("*--*/blobs/*")):
        with suppress(OSError):
            if shared_file(blob) == shared:
                found.append(blob)
    return found
