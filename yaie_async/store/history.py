"""How long imports and builds took on this machine: a small file in the user's cache folder, which may be missing."""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaie_async.store.diskio import read_regular

# Bytes of the file, its entries, and the seconds of one; other users' files may have any.
_LARGEST, _MOST, _LONGEST = 64 << 10, 64, 86_400.0


@dataclass(frozen=True, slots=True)
class Took:
    """The last time of a piece of work."""

    seconds: float
    count: int  # of the modules that it imported, or the bytes that it built from


def user_cache(name: str) -> Path:
    """The folder `name` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        RuntimeError: this user has no home directory.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is invalid and ignored.
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / name


def last_time(what: str) -> Took | None:
    """What a piece of work took the last time; None where that is not known. Blocks."""
    return _read().get(what)


def remember(what: str, took: Took) -> None:
    """Keep what a piece of work took, where the folder can be written and belongs to this user. Blocks."""
    with suppress(OSError, RuntimeError, ValueError):
        folder = user_cache("yaie_async")
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if nearest.stat().st_uid != os.geteuid():
            return  # root with the home of another user, who could not write here any more
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = [(name, one) for name, one in _read().items() if name != what][1 - _MOST :]
        entries = {name: (one.seconds, one.count) for name, one in (*kept, (what, took))}
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            new = Path(scratch, "history.json")
            new.write_text(json.dumps(entries), encoding="utf-8")
            os.replace(new, folder / new.name)


def _read() -> Mapping[str, Took]:
    with suppress(OSError, RuntimeError, ValueError, RecursionError):
        parsed = json.loads(read_regular(user_cache("yaie_async") / "history.json", _LARGEST))
        if isinstance(parsed, dict):
            return {name: Took(*entry) for name, entry in parsed.items() if _is_right(entry)}
    return {}


def _is_right(entry: Any) -> bool:
    match entry:
        case [int() | float() as seconds, int() as count]:
            return 0 < seconds <= _LONGEST and 0 < count < 2**63
    return False
