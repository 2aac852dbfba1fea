"""The demo's real model, converted once a machine: kept in the user's cache folder, and checked before it is used."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from yaie_async.demo import making
from yaie_async.demo.maker import make
from yaie_async.store.history import user_cache

_MODELS = "models"
_DIGESTS = "digests.json"


def cache_folder() -> Path:
    """Return the folder of conversions, or raise a RuntimeError where this user has no home directory."""
    return user_cache("yaie-async-demo")


def converted(gguf: Path, repo_id: str, folder: Path, scratch: Path, say: Callable[[str], None]) -> Path:
    """Return a directory of models that has `gguf` as the fp16 checkpoint `repo_id`; convert it if none is kept.

    A conversion is named after the digests of `gguf` and of the code that converts, and moved to its place as a
    whole; its files are compared with their digests before each use. One demo converts, others wait for it.

    Raises:
        OSError, RuntimeError: `folder` can't be written, or its file system has no locks.
        LoaderError: the conversion failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / conversion_name(gguf)
    with _locked(folder / "lock", say):
        if not is_whole(kept):
            say(f"Converting {gguf.name} to an fp16 checkpoint, kept in {folder}: half a minute, once.")
            for left in folder.glob(".making-*"):  # by a demo that was killed: no other one converts now
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as making_folder:
                made = Path(making_folder, "conversion")
                make(["smollm2", str(gguf)], made / _MODELS / repo_id, scratch)
                (made / _DIGESTS).write_text(json.dumps(_digests(made / _MODELS)), encoding="utf-8")
                shutil.rmtree(kept, ignore_errors=True)
                made.rename(kept)
    return kept / _MODELS


def conversion_name(gguf: Path) -> str:
    """Name the conversion of a file: another file, or other code that converts it, gives another name."""
    return hashlib.sha256((_digest(gguf) + _digest(Path(making.__file__))).encode()).hexdigest()[:16]


def is_whole(kept: Path) -> bool:
    """Whether a kept conversion has exactly the files that were converted, byte for byte."""
    try:
        return bool(json.loads((kept / _DIGESTS).read_bytes()) == _digests(kept / _MODELS))
    except (OSError, ValueError):
        return False


def _digests(models: Path) -> dict[str, str]:
    return {str(path.relative_to(models)): _digest(path) for path in sorted(models.rglob("*")) if path.is_file()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say("Another demo is converting the model: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
