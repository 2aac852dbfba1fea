"""`yaie-async verify`: compares cached files with the digests in their names, offline."""

import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id

from yaie_async.cli.options import LoadOptions
from yaie_async.cli.repair import Damage, repair
from yaie_async.cli.result import CommandResult
from yaie_async.cli.tables import table
from yaie_async.core.errors import InvalidArgumentError, OfflineError
from yaie_async.core.names import digest_kind
from yaie_async.fetch.digest import digest_of
from yaie_async.fetch.settings import read_settings
from yaie_async.loader.streams import is_terminal
from yaie_async.loader.text import size
from yaie_async.store.cache import RepoCache

# hashlib releases the GIL, so one thread per core; at most 4, since more slow down a spinning disk.
_THREADS = min(4, os.cpu_count() or 1)

OK, CORRUPT, MISSING, UNREADABLE, UNKNOWN = "ok", "corrupt", "missing", "unreadable", "unknown"


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file of the cache after its check.

    Attributes:
        model: repo id.
        path: the path of the blob, or of the file in the snapshot where the cache has no symlinks.
        files: its paths in snapshots, as commit/path.
        size: bytes.
        status: "ok"; "corrupt" (the digest does not match the name); "missing" (a snapshot links to it, but it does
            not exist); "unreadable"; or "unknown" (its expected digest is not known).
        found: the actual digest of a corrupt file.
    """

    model: str
    path: Path
    files: tuple[str, ...]
    size: int
    status: str
    found: str | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    model: str
    path: Path
    etag: str | None
    files: tuple[str, ...]


def verify(models: list[str], options: LoadOptions, agrees: Callable[[str], bool] | None = None) -> CommandResult:
    """Check the blobs of `models`, or of all cached models if none is named; repair what is damaged or missing.

    Args:
        models: repo ids.
        options: the cache, and for a repair the Hub.
        agrees: asks about a file that is not this repository's alone; None to change nothing at all.

    Raises:
        InvalidArgumentError: a name is not a repo id.
        OfflineError: a model is not cached, or a repair may make no request.
    """
    settings = read_settings(cache_dir=options.cache_dir, token=False, endpoint=None, local_files_only=None)
    root = settings.cache_dir
    if agrees and settings.offline:
        raise OfflineError("A repair fetches files again, but no request may be made (HF_HUB_OFFLINE).")
    caches = [_cache(root, model) for model in dict.fromkeys(models)] if models else list(_all(root))
    tasks = [task for cache in caches for task in _tasks(cache)]
    checked = _check_all(tasks)
    bad = [file for file in checked if file.status in (CORRUPT, MISSING, UNREADABLE)]
    document = {
        "cache_dir": str(root),
        "models": {cache.repo_id: _summary(cache, checked) for cache in caches},
        **({"error": {"type": "IntegrityError", "message": _verdict(bad, checked)}} if bad else {}),
    }
    rows = [
        (
            cache.repo_id,
            *(str(_count(cache, checked, status)) for status in (OK, CORRUPT, MISSING)),
            _other_counts(cache, checked),
        )
        for cache in caches
    ]
    lines: list[Any] = []
    if caches:
        lines.append(table("model", OK, CORRUPT, MISSING, "other", rows=rows))
    lines += [f"{file.status}: {file.path} ({', '.join(file.files) or 'in no snapshot'})" for file in bad]
    lines.append(_verdict(bad, checked) if caches else f"No model is cached in {root}.")
    if agrees is None or not bad:
        lines += [] if agrees else _advice(bad)
        return CommandResult(document, lines, failed=bool(bad))
    damages = [Damage(file.model, file.path, file.files) for file in bad if file.status != UNREADABLE]
    done = repair(damages, root, options, users=partial(_users, root), agrees=agrees)
    done.left.extend(f"{file.path} can't be read." for file in bad if file.status == UNREADABLE)
    lines += [*(f"fetched again: {name}" for name in done.fetched), *done.left]
    lines.append("Not all is repaired." if done.left else "All is repaired.")
    if not done.left:
        del document["error"]
    document["repair"] = {"fetched": done.fetched, "left": done.left}
    return CommandResult(document, lines, failed=bool(done.left))


def _users(root: Path, blob: Path) -> Iterator[Damage]:
    """What a blob of any repository of the cache is in its snapshots; nothing for a dataset's."""
    kind, _, name = blob.parents[1].name.partition("--")
    if kind == "models":
        cache = RepoCache(root, name.replace("--", "/"))
        yield from (Damage(cache.repo_id, task.path, task.files) for task in _tasks(cache) if task.path == blob)


def _cache(root: Path, model: str) -> RepoCache:
    try:
        validate_repo_id(model)
    except ValueError as error:
        message = f"{model!r} is not a repo id ({error}). Only cached models of the Hub can be verified; give org/name."
        raise InvalidArgumentError(message, model=model) from error
    cache = RepoCache(root, model)
    if not cache.folder.is_dir():
        raise OfflineError(
            f"{model} is not in the cache at {root}. Download it: yaie-async prefetch {model}", model=model
        )
    return cache


def _all(root: Path) -> Iterator[RepoCache]:
    for folder in sorted(root.glob("models--*")):
        if folder.is_dir():
            yield RepoCache(root, folder.name.removeprefix("models--").replace("--", "/"))


def _tasks(cache: RepoCache) -> Iterator[_Task]:
    """Yield what to check: all blobs, the targets of dangling links, and regular files in snapshots."""
    names: dict[Path, list[str]] = {}
    for path in sorted((cache.folder / "snapshots").glob("*/**/*")):
        name = path.relative_to(cache.folder / "snapshots").as_posix()
        if path.is_symlink():
            names.setdefault(Path(os.path.normpath(path.parent / path.readlink())), []).append(name)
        elif path.is_file():
            commit, _, file = name.partition("/")
            known = (cache.tree(commit) or {}).get(file)
            yield _Task(cache.repo_id, path, known.etag if known else None, (name,))
    blobs = {path for path in cache.blobs.glob("*") if path.is_file() and not path.name.endswith(".incomplete")}
    for path in sorted(blobs | names.keys()):
        yield _Task(cache.repo_id, path, path.name, tuple(names.get(path, ())))


def _check_all(tasks: list[_Task]) -> list[CheckedFile]:
    """Check several files in parallel. On Ctrl-C each thread stops after the megabyte that it is reading."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="yaie_async verify")
    try:
        with _progress(len(tasks)) as advance:
            futures = [pool.submit(_check, task, stop) for task in tasks]
            for _ in as_completed(futures):
                advance()
            return [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _check(task: _Task, stop: threading.Event) -> CheckedFile:
    length, found, status = 0, None, OK
    try:
        length = task.path.stat().st_size
        if task.etag is None or digest_kind(task.etag) is None:
            status = UNKNOWN
        elif (digest := digest_of(task.path, task.etag, stop.is_set)) != task.etag:
            found, status = digest, CORRUPT
    except FileNotFoundError:
        status = MISSING
    except OSError:
        status = UNREADABLE
    return CheckedFile(task.model, task.path, task.files, length, status, found)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    if not is_terminal(sys.stderr):
        with nullcontext():
            yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), console=Console(stderr=True)
    ) as bars:
        task = bars.add_task("", total=total)
        yield lambda: bars.advance(task)


def _count(cache: RepoCache, checked: list[CheckedFile], status: str) -> int:
    return sum(file.model == cache.repo_id and file.status == status for file in checked)


def _other_counts(cache: RepoCache, checked: list[CheckedFile]) -> str:
    counts = {status: _count(cache, checked, status) for status in (UNREADABLE, UNKNOWN)}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _summary(cache: RepoCache, checked: list[CheckedFile]) -> dict[str, Any]:
    return {
        **{status: _count(cache, checked, status) for status in (OK, CORRUPT, MISSING, UNREADABLE, UNKNOWN)},
        "bytes": sum(file.size for file in checked if file.model == cache.repo_id),
        "bad": [
            {"blob": str(file.path), "files": list(file.files), "status": file.status, "found": file.found}
            for file in checked
            if file.model == cache.repo_id and file.status in (CORRUPT, MISSING, UNREADABLE)
        ],
    }


def _verdict(bad: list[CheckedFile], checked: list[CheckedFile]) -> str:
    total = f"{len(checked)} files, {size(sum(file.size for file in checked))}"
    if bad:
        return f"{len(bad)} of {total}, failed the check."
    return f"All is well: {total}."


def _advice(bad: list[CheckedFile]) -> list[str]:
    lines = ["Nothing was changed."] if bad else []
    if any(file.status == UNREADABLE for file in bad):
        lines.append("For unreadable files, check their permissions and the disk.")
    if again := [
        shlex.quote(model) for model in dict.fromkeys(file.model for file in bad if file.status != UNREADABLE)
    ]:
        lines.append(f"To remove damaged files and fetch them again:  yaie-async verify --repair {' '.join(again)}")
    return lines
