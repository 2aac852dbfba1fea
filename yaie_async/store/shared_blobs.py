"""Blobs that are links to a file outside of their repository's folder, as the official client shares them.

    $C/blobs/.huggingface-shared-blobs          "1" and a newline: the folder is such a store
    $C/blobs/<2 hex>/<xet hash>                 the bytes, read-only
    $C/blobs/<2 hex>/<xet hash>.refs            the blobs that are links to it, a line each, relative to $C
    $C/blobs/<2 hex>/<xet hash>.lock            held while a link is made or the bytes are removed

The layout is that of huggingface_hub 2.4, which fills the store. This package adds links and never bytes.
"""

import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from yaie_async.store.compat import are_symlinks_supported, constant
from yaie_async.store.diskio import open_regular, read_regular

_LOCK_SECONDS = 10


def has_store(root: Path) -> bool:
    """Whether the cache has a store that may be used. Blocks."""
    with suppress(OSError):
        allowed = not constant("HF_HUB_DISABLE_SHARED_BLOBS")
        marked = read_regular(root / "blobs" / ".huggingface-shared-blobs", 16) == b"1\n"
        return allowed and marked and are_symlinks_supported(root)
    return False


def link_from_store(root: Path, blob: Path, xet_hash: str, size: int, is_right: Callable[[Path], bool]) -> bool:
    """Return whether a blob could be made a link to the file of this content in the store, which `is_right`. Blocks.

    The reference is written before the link, so that the official client never removes bytes that are in use.
    """
    if not re.fullmatch("[0-9a-f]{64}", xet_hash):
        return False
    shared = root / "blobs" / xet_hash[:2] / xet_hash
    link = blob.with_name(f".{blob.name}.{uuid.uuid4().hex[:8]}.shared")
    try:
        os.close(open_regular(shared, follow=False))
        if shared.parent.is_symlink() or shared.parents[1].is_symlink():
            return False
        if shared.stat().st_size != size or not is_right(shared):
            return False
        with FileLock(store_lock(shared), timeout=_LOCK_SECONDS, mode=0o666):
            shared.lstat()  # FileNotFoundError: removed meanwhile
            blob.parent.mkdir(parents=True, exist_ok=True)
            append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            refs = open_regular(shared.with_name(f"{xet_hash}.refs"), append, follow=False)
            with open(refs, "wb", buffering=0) as file:
                file.write(f"{blob.relative_to(root).as_posix()}\n".encode())
                os.fsync(refs)
            os.symlink(os.path.relpath(shared, blob.parent), link)
            os.replace(link, blob)
    except (OSError, Timeout):
        return False  # it is fetched
    finally:
        link.unlink(missing_ok=True)
    return True


def store_lock(shared: Path) -> Path:
    return shared.with_name(f"{shared.name}.lock")


def is_stored(root: Path, shared: Path) -> bool:
    """Whether a file, by its real path, is one of the store's. Blocks."""
    return shared.parents[1] == Path(os.path.realpath(root)) / "blobs"


def is_inside(root: Path, path: Path) -> bool:
    """Whether a file, whose own name may be a link, is beneath the root, whatever its folders are. Blocks."""
    return Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(root))


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
